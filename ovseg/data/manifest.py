"""The folder of a written dataset: what was asked for, what is done, what is in it.

``request.json`` is written first and says what decides every byte; a shard under its final name is
done; ``dataset.json`` is written last. None holds a time or a path of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

from ovseg.data.shard_file import REJECTED, read_records, shard_name, shard_number
from ovseg.data.shard_format import Record
from ovseg.data.yields import Plan, Yield, plan

REQUEST, DATASET = "request.json", "dataset.json"


def prepare(folder: Path, request: dict) -> None:
    """Make the folder ready for the shards that are still to be made; damaged ones are removed.

    Args:
        folder: Where the dataset is, or will be.
        request: ``{"config": ..., "environment": ...}``, JSON-ready.

    Raises:
        ValueError: If the folder holds a dataset of another configuration, or a started one of
            another environment (device, threads, versions).
        PermissionError: If it cannot be written.
    """
    config = request["config"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        left = pending(folder, config)
        _refuse_another(folder, request, bool(done_shards(folder, config)), finished=not left)
        if left and (folder / DATASET).is_file():
            for number in left:  # only dataset.json tells that they are damaged
                (folder / shard_name(number)).unlink(missing_ok=True)
            (folder / DATASET).unlink()
        if left:
            write_json(folder / REQUEST, request)
    except OSError as error:
        raise PermissionError(
            f"cannot write the dataset to {folder} ({error.strerror}): choose another output"
        ) from None


def pending(folder: Path, config: dict, ahead: int = 1) -> list[int]:
    """Return the numbers of the shards that are still to be made, as far as that is known.

    Args:
        folder: Of the dataset.
        config: What decides its bytes.
        ahead: How many shards to make at once in search of what a quota lacks.
    """
    done = done_shards(folder, config)
    return [n for n in range(plan_shards(folder, config, ahead).shards) if n not in done]


def done_shards(folder: Path, config: dict) -> set[int]:
    """Return the numbers of the finished shards.

    One that is empty is not, nor one of another size than `dataset.json` says. The rejects of a
    complete dataset may have been deleted.
    """
    sizes = _recorded_sizes(folder)
    alone = config.get("rejected") is None or bool(sizes)
    return {
        shard_number(path)
        for path in folder.glob("shard-*.tar")
        if 0 < (size := path.stat().st_size) == sizes.get(path.name, size)
        and (alone or (folder / REJECTED / path.name).is_file())
    }


def plan_shards(folder: Path, config: dict, ahead: int = 1) -> Plan:
    """Return which shards the dataset takes, as far as that is known."""
    if sizes := _recorded_sizes(folder):
        return Plan(len(sizes), True, {})
    done = done_shards(folder, config)
    return plan(config, done, lambda number: shard_yield(folder, number), ahead)


def shard_yield(folder: Path, number: int) -> Yield:
    """Return what was kept and rejected of a finished shard."""
    stamp = (folder / shard_name(number)).stat().st_mtime_ns
    return _yield_of(folder, number, stamp)


@cache
def _yield_of(folder: Path, number: int, stamp: int) -> Yield:
    paths = [folder / shard_name(number), folder / REJECTED / shard_name(number)]
    return Yield.of(record for path in paths if path.is_file() for record in read_records(path))


def finish(folder: Path, config: dict) -> bool:
    """Write `dataset.json` if all shards are there and it is not.

    Shards that were made in search of what a quota lacked, and are not needed, are removed.

    Returns:
        Whether the dataset is complete.
    """
    shards, settled, _ = plan_shards(folder, config)
    done = done_shards(folder, config)
    if not settled or not done.issuperset(range(shards)):
        return False
    if not (folder / DATASET).is_file():
        for path in [p for part in ("", REJECTED) for p in (folder / part).glob("shard-*.tar*")]:
            if shard_number(path) >= shards:
                path.unlink()
        write_json(folder / DATASET, describe_shards(folder, read_request(folder), shards))
    return True


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


def read_request(folder: Path) -> dict:
    """Return `request.json` of a dataset that was at least begun.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = folder / REQUEST
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: give a folder that `predict` writes")
    return json.loads(path.read_text(encoding="utf-8"))


def read_manifest(folder: Path) -> dict:
    """Return `dataset.json` of a complete dataset.

    Raises:
        FileNotFoundError: If the folder is missing, has no shards or is not complete.
        ValueError: If a shard has another size than when it was written.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no dataset folder {folder}: `predict` writes one")
    if not any(folder.glob("*.tar")):
        raise FileNotFoundError(f"folder {folder} holds no shards: `predict` writes them")
    if not (folder / DATASET).is_file():
        raise FileNotFoundError(f"dataset {folder} is not complete: run `predict` again")
    manifest = json.loads((folder / DATASET).read_text(encoding="utf-8"))
    for name, facts in manifest["shards"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != facts["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes, not {facts['bytes']}"
            raise ValueError(
                f"shard {path} {state}: run `predict` again, it makes what is missing or damaged"
            )
    return manifest


def digest_of(config: dict) -> str:
    """Return a hex digest of JSON-ready data."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def differences(there: object, here: object, path: str = "") -> list[str]:
    """Return lines such as "backbone.steps is 30 there, 50 here"."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted(there.keys() | here.keys())
        lines = (differences(there.get(k), here.get(k), f"{path}.{k}".strip(".")) for k in keys)
        return [line for part in lines for line in part]
    return [] if there == here else [f"{path} is {there!r} there, {here!r} here"]


def write_json(path: Path, data: dict) -> None:
    """Write a JSON file so that it is there as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _recorded_sizes(folder: Path) -> dict[str, int]:
    path = folder / DATASET
    if not path.is_file():
        return {}
    shards = json.loads(path.read_text(encoding="utf-8"))["shards"]
    return {name: facts["bytes"] for name, facts in shards.items()}


def _is_done(path: Path, sizes: dict[str, int]) -> bool:
    size = path.stat().st_size if path.is_file() else 0
    return size > 0 and size == sizes.get(path.name, size)


def _refuse_another(folder: Path, request: dict, started: bool, finished: bool) -> None:
    if not (folder / REQUEST).is_file():
        if started:
            raise ValueError(f"{folder} holds shards but no {REQUEST}: choose an empty output")
        return
    there = read_request(folder)
    here = json.loads(json.dumps(request))  # tuples become lists, as they did there
    if not started:
        return
    lines = differences(there["config"], here["config"])
    if not lines and not finished:  # a finished dataset is of use in any environment
        lines = differences(there["environment"], here["environment"])
    if lines:
        shown = "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" * (len(lines) > 4))
        raise ValueError(f"{folder} holds another dataset ({shown}): choose another output")


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
