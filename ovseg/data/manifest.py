"""The folder of a written dataset: what was asked for, what is done, what is in it.

``request.json`` is written first and says what decides every byte; a shard under its final name is
done; ``dataset.json`` is written last. None holds a time or a path of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

from ovseg.data.shard_format import decode_facts, index_shard, shard_name
from ovseg.vocabulary import Vocabulary

REQUEST, DATASET = "request.json", "dataset.json"


def prepare(folder: Path, request: dict, shards: int) -> list[int]:
    """Make the folder ready and return the numbers of the shards that are still to be made.

    Those are the missing ones, empty ones, and ones of another size than `dataset.json` says.

    Args:
        folder: Where the dataset is, or will be.
        request: ``{"config": ..., "environment": ...}``, JSON-ready.
        shards: How many shards the dataset has.

    Raises:
        ValueError: If the folder holds a dataset of another configuration, or a started one of
            another environment (device, threads, versions).
        PermissionError: If it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sizes = _recorded_sizes(folder)
        pending = [n for n in range(shards) if not _is_done(folder / shard_name(n), sizes)]
        _refuse_another(folder, request, started=len(pending) < shards, finished=not pending)
        if pending:
            (folder / DATASET).unlink(missing_ok=True)
            write_json(folder / REQUEST, request)
    except OSError as error:
        raise PermissionError(
            f"cannot write the dataset to {folder} ({error.strerror}): choose another output"
        ) from None
    return pending


def finish(folder: Path, shards: int, vocabulary: Vocabulary) -> bool:
    """Write `dataset.json` if all shards are there and it is not.

    Returns:
        Whether the dataset is complete.
    """
    paths = [folder / shard_name(n) for n in range(shards)]
    if not all(path.is_file() for path in paths):
        return False
    if not (folder / DATASET).is_file():
        request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        write_json(folder / DATASET, describe_shards(request, paths, vocabulary))
    return True


def describe_shards(request: dict, paths: Iterable[Path], vocabulary: Vocabulary) -> dict:
    """Return the contents of `dataset.json`."""
    samples, classes, pairs, shards = 0, {}, {}, {}
    for path in paths:
        data = path.read_bytes()
        index = index_shard(path)
        for members in index:
            offset, size = members["json"]
            asked, found, _, _ = decode_facts(data[offset : offset + size])
            _count(asked.entities, found, vocabulary, classes, pairs)
        samples += len(index)
        digest = hashlib.sha256(data).hexdigest()
        shards[path.name] = {"samples": len(index), "bytes": len(data), "sha256": digest}
    return {
        **request["config"],
        "environment": request["environment"],
        "config_digest": digest_of(request["config"]),
        "counts": {
            "samples": samples,
            "classes": {key: classes[key] for key in sorted(classes)},
            "pairs": {key: pairs[key] for key in sorted(pairs)},
        },
        "shards": shards,
    }


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
    path = folder / REQUEST
    if not path.is_file():
        if started:
            raise ValueError(f"{folder} holds shards but no {REQUEST}: choose an empty output")
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    here = json.loads(json.dumps(request))  # tuples become lists, as they did there
    if not started:
        return
    lines = differences(there["config"], here["config"])
    if not lines and not finished:  # a finished dataset is of use in any environment
        lines = differences(there["environment"], here["environment"])
    if lines:
        shown = "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" * (len(lines) > 4))
        raise ValueError(f"{folder} holds another dataset ({shown}): choose another output")


def _count(entities, found, vocabulary: Vocabulary, classes: dict, pairs: dict) -> None:
    """Add a sample to the counts of classes and of pairs of classes."""
    known = [(e.class_id, ok) for e, ok in zip(entities, found, strict=True) if e.class_id]
    keys = [(vocabulary[class_id].key, ok) for class_id, ok in sorted(known)]
    for key, ok in keys:
        counts = classes.setdefault(key, {"prompted": 0, "found": 0})
        counts["prompted"] += 1
        counts["found"] += ok
    for (one, one_found), (other, other_found) in combinations(keys, 2):
        counts = pairs.setdefault(f"{one} + {other}", {"prompted": 0, "found": 0})
        counts["prompted"] += 1
        counts["found"] += one_found and other_found
