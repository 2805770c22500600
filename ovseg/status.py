"""``ovseg status``: how far a dataset is, what was kept of it so far, how long it will take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from ovseg.data.contents import gone_yield, shard_yield
from ovseg.data.fetch import local_path
from ovseg.data.manifest import DATASET, REQUEST, done_shards, plan_shards, read_request
from ovseg.data.shard_file import shard_name
from ovseg.data.shard_writing import is_locked
from ovseg.data.yields import Plan, Yield
from ovseg.errors import VerbParser
from ovseg.report.terminal import show_yield


class Status(NamedTuple):
    """What a dataset's folder tells.

    Attributes:
        state: "complete", "running", or "stopped": shards are missing and nobody is writing one.
        done: Finished shards.
        writing: Shards that a process is writing, as far as this machine sees its locks.
        total: Shards of the dataset as far as that is known.
        so_far: What was kept and rejected of the finished ones.
        missing: ``{class key: kept samples that its quota lacks}``.
        rate: Samples per second since the last start, rejected ones included; None if no shard
            was finished since then.
        left: Seconds until the rest is made at this rate, if it is running and the rate known.
    """

    state: str
    done: int
    writing: int
    total: int
    so_far: Yield
    missing: dict[str, int]
    rate: float | None
    left: float | None


def main(argv: Sequence[str]) -> int:
    """Print the status of a dataset, finished or not.

    Raises:
        FileNotFoundError: If there is no dataset.
        ValueError: If a finished shard is damaged.
    """
    parser = VerbParser(prog="ovseg status", description=__doc__)
    parser.add_argument(
        "dataset", type=local_path, help="folder that `predict` or `refilter` writes"
    )
    parser.add_argument("--config", action="store_true", help="what decides its bytes, as JSON")
    args = parser.parse_args(argv)
    config = read_request(args.dataset, "vocabulary.keys")["config"]
    show(args.dataset, status_of(args.dataset), config)
    if args.config:
        print(json.dumps(config, indent=1, ensure_ascii=False))
    return 0


def status_of(folder: Path) -> Status:
    """Look at a dataset's folder; nothing is locked or changed.

    Raises:
        FileNotFoundError: If there is no dataset.
        ValueError: If a finished shard is damaged.
    """
    config = read_request(folder, "vocabulary.keys")["config"]
    done = done_shards(folder, config)
    plan = plan_shards(folder, config)
    done_of_it = sorted(number for number in done if number < plan.shards)
    so_far = Yield.sum(shard_yield(folder, number) for number in done_of_it)
    so_far += gone_yield(config, done_of_it)
    writing = _writing(folder)
    finished = (folder / DATASET).is_file() and len(done_of_it) == plan.shards
    state = "complete" if finished else "running" if writing else "stopped"
    rate = _rate(folder, done)
    left = None
    if rate and state == "running":
        left = _samples_left(config, plan, len(done_of_it), so_far) / rate
    keys = config["vocabulary"]["keys"]
    missing = {keys[class_id]: number for class_id, number in plan.missing.items()}
    return Status(state, len(done_of_it), writing, plan.shards, so_far, missing, rate, left)


def show(folder: Path, status: Status, config: dict) -> None:
    """Print a status on one screen."""
    console = Console(highlight=False, markup=False, emoji=False)
    pending = status.total - status.done - status.writing
    console.print(f"{folder}: {status.state}", soft_wrap=True)
    console.print(
        f"shards: {status.done} done, {status.writing} being written, {max(pending, 0)} pending"
    )
    if status.missing:
        lacks = sorted(status.missing.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{key} {number}" for key, number in lacks[:8])
        more = f", and {len(lacks) - 8} classes more" * (len(lacks) > 8)
        console.print(f"quota: {config['quota']} of each class; missing: {shown}{more}")
    if status.rate is not None and status.state != "complete":
        left = f"; about {timedelta(seconds=round(status.left))} left" if status.left else ""
        console.print(f"rate: {status.rate:.3g} samples/s{left}")
    if status.done:
        show_yield("yield", status.so_far.describe(config["vocabulary"]["keys"]), console)


def _writing(folder: Path) -> int:
    """Return how many shards are locked by a process that writes them."""
    count = 0
    for path in folder.glob("shard-*.tar.tmp"):
        with suppress(FileNotFoundError):  # it was given its name in between
            count += is_locked(path)
    return count


def _rate(folder: Path, done: set[int]) -> float | None:
    """Return samples per second from the last start (it writes `request.json`) to the last shard.

    Args:
        folder: Of the dataset.
        done: Its finished shards.
    """
    start = (folder / REQUEST).stat().st_mtime
    times = {number: (folder / shard_name(number)).stat().st_mtime for number in done}
    new = [number for number, at in times.items() if at > start]
    if not new:
        return None
    made = Yield.sum(shard_yield(folder, number) for number in new)
    return (made.kept + made.rejected) / (max(times.values()) - start)


def _samples_left(config: dict, plan: Plan, done: int, so_far: Yield) -> float:
    """Return how many samples are still to be made, what the poorest class needs included."""
    sure = (plan.shards - done) * config["shard_size"]
    made = so_far.kept + so_far.rejected
    lacks = [lack * made / max(so_far.gained[i], 1) for i, lack in plan.missing.items()]
    return min(max([sure, *lacks]), (config.get("limit") or float("inf")) - made)
