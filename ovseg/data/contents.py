"""What stands in the finished shards of a dataset, counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

from ovseg.data.shard_file import REJECTED, read_records, shard_name
from ovseg.data.shard_format import Record
from ovseg.data.yields import Yield


def describe_shards(folder: Path, request: dict, shards: int) -> dict:
    """Return the contents of `dataset.json`."""
    config, total = request["config"], Yield()
    keys = config["vocabulary"]["keys"]
    classes, pairs, kept, rejected = {}, {}, {}, {}
    for number, name in enumerate(map(shard_name, range(shards))):
        records = read_records(folder / name)
        for record in records:
            _count(record, keys, classes, pairs)
        kept[name] = _file_facts(folder / name, len(records))
        total += shard_yield(folder, number)
        if config.get("rejected") is not None:
            path = folder / REJECTED / name
            rejected[name] = _file_facts(path, len(read_records(path)))
    return {
        **config,
        "environment": request["environment"],
        "config_digest": digest_of(config),
        "counts": {
            "samples": total.kept,
            "classes": {key: classes[key] for key in sorted(classes)},
            "pairs": {key: pairs[key] for key in sorted(pairs)},
        },
        "yield": total.describe(keys),
        "shards": kept,
        "rejected_shards": rejected,
    }


def shard_yield(folder: Path, number: int) -> Yield:
    """Return what was kept and rejected of a finished shard."""
    stamp = (folder / shard_name(number)).stat().st_mtime_ns
    return _yield_of(folder, number, stamp)


@cache
def _yield_of(folder: Path, number: int, stamp: int) -> Yield:
    paths = [folder / shard_name(number), folder / REJECTED / shard_name(number)]
    return Yield.of(record for path in paths if path.is_file() for record in read_records(path))


def digest_of(config: dict) -> str:
    """Return a hex digest of JSON-ready data."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _file_facts(path: Path, samples: int) -> dict:
    """Return number of samples, bytes and digest of a shard."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"samples": samples, "bytes": path.stat().st_size, "sha256": digest}


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
