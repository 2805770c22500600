"""The folder of a written dataset: what was asked for, what is done, what is in it.

``request.json`` is written first and says what decides every byte; a shard under its final name is
done; ``dataset.json`` is written last. None holds a time or a path of its own.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from ovseg.data.card import make_card
from ovseg.data.contents import BEFORE, COUNTS, describe_shards, recorded, shard_yield
from ovseg.data.json_file import read_json
from ovseg.data.shard_file import DATASET, REJECTED, shard_name, shard_number
from ovseg.data.shard_writing import held_shards, locked, telling_where
from ovseg.data.yields import Plan, plan

REQUEST, CARD = "request.json", "card.md"
NEEDED = (
    "format",
    "vocabulary.name",
    "vocabulary.digest",
    "vocabulary.split",
    "vocabulary.num_classes",
    "backbone",
    "annotator",
    "config_digest",
    "counts.samples",
    "counts.classes",
    "shards.*.samples",
    "shards.*.bytes",
    "shards.*.sha256",
)
"""What `dataset.json` has in every format; see `read_json`."""

UNTOLD = tuple(
    f"{key} is None there"
    for key in ("quota_classes", "vocabulary.unseen", "vocabulary.words_digest")
)
"""Differences from older datasets, which are of use all the same once they are finished."""

MACHINE = ("offload", "local_files_only")
"""Arguments of a backbone that depend on the machine, and on which no byte does."""

UNDECIDING = tuple(f"backbone.{place}{key} is " for place in ("", "init_args.") for key in MACHINE)
"""Differences of no account; older datasets recorded these arguments."""

SHOWN = 6
"""Differences that an error names; of more it says how many."""


def deciding(facts: dict) -> dict:
    """Return those facts of a backbone (`DiffusionBackbone.describe`) that decide a dataset."""
    return {
        key: deciding(value) if key == "init_args" else value
        for key, value in facts.items()
        if key not in MACHINE
    }


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
        if not pending(folder, config):
            _refuse_another(folder, request, finished=True)
            return
        with locked(folder):
            if begun := held_shards(folder) or any(_sizes(folder).values()):
                _refuse_another(folder, request, finished=False)
            _reopen(folder, config)
            if not begun:  # of another dataset, maybe
                (folder / BEFORE).unlink(missing_ok=True)
            write_json(folder / REQUEST, request)
    except OSError as error:
        raise PermissionError(
            f"cannot write the dataset to {folder} ({error.strerror}): choose another output"
        ) from None


def _reopen(folder: Path, config: dict) -> None:
    """Take `dataset.json` aside if shards are lost; it goes on telling of those that are there."""
    if (folder / DATASET).is_file() and (lost := pending(folder, config)):
        for number in lost:  # only dataset.json tells of the damage
            (folder / shard_name(number)).unlink(missing_ok=True)
        os.replace(folder / DATASET, folder / BEFORE)


def pending(folder: Path, config: dict, ahead: int = 1) -> list[int]:
    """Return the numbers of the shards that are still to be made, as far as that is known.

    Args:
        folder: Of the dataset.
        config: What decides its bytes.
        ahead: How many shards to make at once in search of what a quota lacks.

    Returns:
        In order; none if all that the dataset takes are there.
    """
    done = done_shards(folder, config)
    return [n for n in range(_plan(folder, config, done, ahead).shards) if n not in done]


def done_shards(folder: Path, config: dict) -> set[int]:
    """Return the numbers of the finished shards.

    One that is empty is not, nor one of another size than `dataset.json` says. The rejects of a
    complete dataset may have been deleted, also when shards of it are made again.
    """
    complete, told = (folder / DATASET).is_file(), _recorded_sizes(folder)
    sizes = {name: size for name, size in _sizes(folder).items() if size}
    done = {name for name, size in sizes.items() if size == told.get(name)}
    if not complete:
        alone = config.get("rejected") is None
        done |= sizes.keys() if alone else sizes.keys() & _sizes(folder / REJECTED).keys()
    return {shard_number(Path(name)) for name in done}


def is_done(folder: Path, config: dict, number: int) -> bool:
    """Return whether a shard of a dataset that is not complete is finished."""
    path = folder / shard_name(number)
    if not path.is_file() or not (size := path.stat().st_size):
        return False
    if config.get("rejected") is None or (folder / REJECTED / path.name).is_file():
        return True
    return recorded(folder).get("shards", {}).get(path.name, {}).get("bytes") == size


def plan_shards(folder: Path, config: dict) -> Plan:
    """Return which shards the dataset takes, as far as that is known."""
    return _plan(folder, config, done_shards(folder, config))


def _plan(folder: Path, config: dict, done: set[int], ahead: int = 1) -> Plan:
    if recorded := _recorded_sizes(folder):
        return Plan(len(recorded), True, {})
    return plan(config, done, lambda number: shard_yield(folder, number), ahead)


def finish(folder: Path, config: dict) -> bool:
    """Write `card.md` and `dataset.json` if all shards are there and it is not.

    Shards that were made in search of what a quota lacked, and are not needed, are removed. Of
    several processes that have seen the last shard, the first does it and the others wait.

    Returns:
        Whether the dataset is complete.
    """
    if (folder / DATASET).is_file():
        return not pending(folder, config)
    with locked(folder):
        if pending(folder, config):
            return False
        if not (folder / DATASET).is_file():
            _complete(folder, plan_shards(folder, config).shards)
    return True


def _complete(folder: Path, shards: int) -> None:
    for path in [p for part in ("", REJECTED) for p in (folder / part).glob("shard-*.tar*")]:
        if shard_number(path) >= shards:
            path.unlink()
    for name in (REQUEST, CARD, DATASET):  # of a process that was killed while it wrote one
        (folder / f"{name}.tmp").unlink(missing_ok=True)
    facts = describe_shards(folder, read_request(folder), shards)
    (folder / COUNTS).unlink(missing_ok=True)
    with telling_where(folder / DATASET):
        write_text(folder / CARD, make_card(facts))
        write_json(folder / DATASET, facts)
    (folder / BEFORE).unlink(missing_ok=True)


def read_request(folder: Path, *needed: str) -> dict:
    """Return `request.json` of a dataset that was at least begun.

    Args:
        folder: Of the dataset.
        needed: What its configuration must have; see `read_json`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or has not what is needed.
    """
    path = folder / REQUEST
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: give a folder that `predict` writes")
    keys = ["config", "environment", *(f"config.{key}" for key in ("size", "shard_size", *needed))]
    return read_json(path, keys, "restore it, or run `predict` again with an empty output")


def read_manifest(folder: Path) -> dict:
    """Return `dataset.json` of a complete dataset.

    Raises:
        FileNotFoundError: If the folder is missing, has no shards or is not complete.
        ValueError: If it is damaged, or a shard has another size than when it was written.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no dataset folder {folder}: `predict` writes one")
    if not any(folder.glob("*.tar")):
        raise FileNotFoundError(f"folder {folder} holds no shards: `predict` writes them")
    if not (folder / DATASET).is_file():
        raise FileNotFoundError(f"dataset {folder} is not complete: run `predict` again")
    manifest = read_json(folder / DATASET, NEEDED)
    for name, facts in manifest["shards"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != facts["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes, not {facts['bytes']}"
            raise ValueError(
                f"shard {path} {state}: run `predict` again, it makes what is missing or damaged"
            )
    return manifest


def differences(there: object, here: object, path: str = "") -> list[str]:
    """Return lines such as "backbone.steps is 30 there, 50 here"."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted(there.keys() | here.keys())
        lines = (differences(there.get(k), here.get(k), f"{path}.{k}".strip(".")) for k in keys)
        return [line for part in lines for line in part]
    return [] if there == here else [f"{path} is {there!r} there, {here!r} here"]


def write_json(path: Path, data: dict) -> None:
    """Write a JSON file so that it is there as a whole or not at all."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there, and on disk, as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _recorded_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of the shards of a dataset that is complete, or was."""
    shards = recorded(folder).get("shards", {})
    return {name: facts["bytes"] for name, facts in shards.items()}


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of every shard under its final name."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        named = (entry for entry in entries if fnmatch(entry.name, "shard-*.tar"))
        return {entry.name: entry.stat().st_size for entry in named}
    return {}


def _refuse_another(folder: Path, request: dict, finished: bool) -> None:
    """Compare what a folder with shards was asked for with a request.

    Raises:
        ValueError: If the configuration differs, or the environment of one that is not finished.
    """
    if not (folder / REQUEST).is_file():
        raise ValueError(f"{folder} holds shards but no {REQUEST}: choose an empty output")
    there = read_request(folder)
    here = json.loads(json.dumps(request))  # tuples become lists, as they did there
    lines = differences(there["config"], here["config"])
    lines = [line for line in lines if not line.startswith(UNDECIDING)]
    if finished:
        lines = [line for line in lines if not line.startswith(UNTOLD)]
    elif not lines:  # a finished dataset is of use in any environment
        lines = differences(there["environment"], here["environment"])
    if lines:
        shown = "; ".join(lines[:SHOWN]) + (
            f"; and {n} more" if (n := len(lines) - SHOWN) > 0 else ""
        )
        raise ValueError(f"{folder} holds another dataset ({shown}): choose another output")
