"""What stands in the finished shards of a dataset, counted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from itertools import combinations
from pathlib import Path

from ovseg.data.json_file import read_json
from ovseg.data.shard_file import DATASET, REJECTED, read_records, sha256_of, shard_name
from ovseg.data.shard_format import Record
from ovseg.data.yields import Yield

COUNTS = "counts.jsonl"
"""The file of a dataset that is not complete which tells of every finished shard what was kept."""

BEFORE = "dataset.before.json"
"""What `dataset.json` said, while lost shards of a dataset that was complete are made again."""

GONE = "gone"
"""Why nothing else is known of a rejected sample: the file of it was deleted."""


def recorded(folder: Path) -> dict:
    """Return what `dataset.json` says of the files, or said before shards were lost; or {}.

    Raises:
        ValueError: If it is damaged.
    """
    for name in (DATASET, BEFORE, DATASET):  # another process may have completed it in between
        with suppress(FileNotFoundError):
            return _recorded(folder / name, _stamp(folder / name))
    return {}


@lru_cache(maxsize=4)
def _recorded(path: Path, stamp: tuple[int, int]) -> dict:
    return read_json(path, ["shards.*.bytes"])


def describe_shards(folder: Path, request: dict, shards: int) -> dict:
    """Return the contents of `dataset.json`.

    Files of rejects that were deleted after it was written before are as they were then; so is the
    yield, if all others have their bytes again.
    """
    config, total = request["config"], Yield()
    keys = config["vocabulary"]["keys"]
    classes, pairs, kept, rejected, before = {}, {}, {}, {}, recorded(folder)
    for number, name in enumerate(map(shard_name, range(shards))):
        records = read_records(folder / name)
        for record in records:
            _count(record, keys, classes, pairs)
        whole = sum(all(facts.found for facts in record.facts) for record in records)
        kept[name] = {**_file_facts(folder / name, len(records)), "all_found": whole}
        total += shard_yield(folder, number)
        total += gone_yield(config, [number])
        if config.get("rejected") is not None:
            path = folder / REJECTED / name
            if before and not path.is_file():
                rejected[name] = before["rejected_shards"][name]
            else:
                rejected[name] = _file_facts(path, len(read_records(path)))
    again = _digests(before) == _digests({"shards": kept, "rejected_shards": rejected})
    return {
        **config,
        "environment": request["environment"],
        "config_digest": digest_of(config),
        "counts": {
            "samples": total.kept,
            "classes": {key: classes[key] for key in sorted(classes)},
            "pairs": {key: pairs[key] for key in sorted(pairs)},
        },
        "yield": before["yield"] if again else total.describe(keys),
        "shards": kept,
        "rejected_shards": rejected,
    }


def shard_yield(folder: Path, number: int) -> Yield:
    """Return what was kept and rejected of a finished shard, as it was noted, or counted again.

    Of rejects whose file was deleted nothing is known but their number.
    """
    stamp, path = _stamp(folder / shard_name(number)), folder / COUNTS
    with suppress(FileNotFoundError):
        if (noted := _noted(path, _stamp(path)).get((number, *stamp))) is not None:
            return noted
    return _counted(folder, number, stamp)


def gone_yield(config: dict, numbers: Iterable[int]) -> Yield:
    """Return the rejected samples of which a refiltered dataset knows nothing but their number.

    Args:
        config: What decides the dataset's bytes.
        numbers: Of its shards.
    """
    gone = (config.get("source") or {}).get(GONE, {})
    count = sum(gone.get(shard_name(number), 0) for number in numbers)
    return _gone(count)


def _gone(count: int) -> Yield:
    return Yield(rejected=count, reasons=Counter({GONE: count} if count else {}))


def note_yield(folder: Path, number: int, counted: Yield) -> None:
    """Note what was kept and rejected of a finished shard, so that nobody need count it again.

    Raises:
        OSError: If it cannot be written.
    """
    line = {"shard": [number, *_stamp(folder / shard_name(number))], **vars(counted)}
    with (folder / COUNTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _stamp(path: Path) -> tuple[int, int]:
    """Return what tells a file from another of its name: bytes, and when it was written."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


@lru_cache(maxsize=4)
def _noted(path: Path, stamp: tuple[int, int]) -> dict[tuple[int, ...], Yield]:
    """Return what is noted, by number and stamp of the shard."""
    found = {}
    for line in path.read_bytes().splitlines():
        with suppress(ValueError):  # a process was killed while it wrote the line
            stored = json.loads(line)
            found[tuple(stored["shard"])] = Yield.from_dict(stored)
    return found


@cache
def _counted(folder: Path, number: int, stamp: tuple[int, int]) -> Yield:
    name = shard_name(number)
    paths = [path for path in (folder / name, folder / REJECTED / name) if path.is_file()]
    counted = Yield.of(record for path in paths for record in read_records(path))
    files = recorded(folder).get("rejected_shards", {}) if len(paths) == 1 else {}
    return Yield.sum([counted, _gone(files[name]["samples"])]) if name in files else counted


def digest_of(config: dict) -> str:
    """Return a hex digest of JSON-ready data."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _file_facts(path: Path, samples: int) -> dict:
    """Return number of samples, bytes and digest of a shard."""
    return {"samples": samples, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _digests(manifest: dict) -> list[dict[str, str]]:
    """Return the SHA-256 of every file of a dataset."""
    parts = (manifest.get(key, {}) for key in ("shards", "rejected_shards"))
    return [{name: facts["sha256"] for name, facts in part.items()} for part in parts]


def _count(record: Record, keys: Sequence[str], classes: dict, pairs: dict) -> None:
    """Add a sample to the counts of classes and of pairs of classes."""
    both = zip(record.request.entities, record.facts, strict=True)
    known = sorted((e.class_id, facts.found) for e, facts in both if e.class_id)
    named = [(keys[class_id], found) for class_id, found in known]
    for key, found in named:
        counts = classes.setdefault(key, {"prompted": 0, "found": 0})
        counts["prompted"] += 1
        counts["found"] += found
    for (one, one_found), (other, other_found) in combinations(named, 2):
        counts = pairs.setdefault(f"{one} + {other}", {"prompted": 0, "found": 0})
        counts["prompted"] += 1
        counts["found"] += one_found and other_found
