"""Who makes which shard of a folder that several processes and jobs write.

What `size` takes is shared out among the jobs of an array by the numbers of the shards, so that
jobs agree whenever they start. Within a share, and in search of what a quota lacks, a shard is made
by whoever claims it first. A claim is a lock, which the system lets go of when a process ends.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby
from pathlib import Path

from ovseg.data.contents import note_yield
from ovseg.data.manifest import DATASET, is_done, pending, read_request
from ovseg.data.shard_writing import Held, Shard, held_shards, locked


def claim(folder: Path, config: dict, number: int) -> Shard | None:
    """Take a shard, unless it is done or another process has it.

    Raises:
        ValueError: If the folder has been prepared for another dataset in the meantime.
    """
    with locked(folder):
        if read_request(folder)["config"] != config:
            raise ValueError(f"another dataset was begun in {folder}: choose another output")
        if (folder / DATASET).is_file() or is_done(folder, config, number):
            return None
        try:
            return Shard(folder, number, config["rejected"])
        except Held:
            return None


def publish(folder: Path, shard: Shard) -> None:
    """Give a claimed shard its name; a dataset that is complete without it needs it no more.

    Raises:
        OSError: If the disk is full.
    """
    with locked(folder):
        if (folder / DATASET).is_file():
            shard.drop()
        else:
            shard.publish()
            note_yield(folder, shard.number, shard.counted)


def open_shards(
    folder: Path, config: dict, processes: int = 1, job_index: int = 0, num_jobs: int = 1
) -> list[int]:
    """Return the shards that a job can make now: pending, its own, and held by nobody.

    Args:
        folder: Of the dataset.
        config: What decides its bytes.
        processes: Number of the job's processes; each makes a shard in search of a quota.
        job_index: The job's number in its array.
        num_jobs: Number of jobs in the array.
    """
    if not pending(folder, config):
        return []
    held = _held(folder)
    shared = -(-config["size"] // config["shard_size"])
    return [
        number
        for number in pending(folder, config, processes + len(held))
        if number not in held and (number >= shared or number % num_jobs == job_index)
    ]


def what_is_left(folder: Path, config: dict) -> str:
    """Say in one line which shards of a dataset that is not complete are being made, or missing."""
    held = _held(folder)
    missing = [number for number in pending(folder, config) if number not in held]
    parts = []
    if held:
        parts.append(f"{_shards(held)} being written by other processes")
    if missing:
        parts.append(f"{_shards(missing)} missing: run `predict` again, or its other jobs")
    if not parts:  # the last was published in between, by a process that goes on to complete it
        parts.append("another process has just written the last shard")
    return f"{folder} is not complete: {', '.join(parts)}; the process that ends last completes it"


def _shards(numbers: Collection[int]) -> str:
    one = len(numbers) == 1
    return f"shard{'s' * (not one)} {ranges(numbers)} {'is' if one else 'are'}"


def ranges(numbers: Collection[int]) -> str:
    """Return numbers as "0-3, 7"."""
    runs = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ends)


def _held(folder: Path) -> set[int]:
    with locked(folder):
        return held_shards(folder)
