"""How a trained part is kept as a folder: its class, its arguments, and the writing of it."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

CONFIG, WEIGHTS, CARD, RESULTS = "config.json", "model.safetensors", "README.md", "results.json"
FILES = {CONFIG, WEIGHTS, CARD, RESULTS}
"""All that the folder of a part may hold."""
FROM_HUB = {".gitattributes", ".cache"}
"""What a folder that was downloaded from the Hub holds besides."""


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _part(value: Any) -> bool:
    if not _object(value):
        return False
    return _text(value.get("class_path", "")) and _object(value.get("init_args", {}))


def _spec(value: Any) -> bool:
    if not _object(value) or not _object(taps := value.get("taps")):
        return False
    if not _object(probes := value.get("probes", {})):
        return False
    maps = [*taps.values(), *probes.values()]
    if not all(isinstance(one, list) and len(one) in (2, 3) for one in maps):
        return False
    steps, branches = value.get("steps", 1), value.get("branches", 1)
    sizes = [steps, branches, *(size for one in maps for size in one[:2])]
    whole = all(type(size) is int for size in [*sizes, *(one[-1] for one in maps)])
    return whole and min(sizes) >= 1 and branches <= 2


def _taught(value: Any) -> bool:
    keys = ("seen", "unseen", "trained_on", "practices")
    return _object(value) and all(_texts(value.get(key, [])) for key in keys)


Fields = dict[str, tuple[str, Callable[[Any], bool]]]
"""Per key of a JSON object, what its value must be, in words and as a test."""

NEEDED: dict[str, Fields] = {
    "grounder": {
        "class_path": ("text", _text),
        "init_args": ("arguments by name", _object),
        "feature_spec": ("taps and probes with whole numbers, steps and 1 or 2 branches", _spec),
        "text_width": ("a whole number >= 1", lambda value: type(value) is int and value >= 1),
        "threshold": (
            "a number inside (0, 1)",
            lambda value: type(value) in (int, float) and 0 < value < 1,
        ),
        "backbone_digest": ("text", _text),
    },
    "segmenter": {
        "segmenter": (
            "a class_path, a text, and init_args by name",
            lambda value: _part(value) and {"class_path", "init_args"} <= set(value),
        ),
        "classes": ("a list of texts", _texts),
    },
}
"""What the folder of each kind of part always has."""

OPTIONAL: dict[str, Fields] = {
    "grounder": {
        "backbone": (
            "null, or facts by name, class_path a text, init_args by name",
            lambda value: value is None or _part(value),
        ),
        "vocabulary": (
            "null, or facts by name, seen, unseen, trained_on and practices lists of texts",
            lambda value: value is None or _taught(value),
        ),
        "attention": ("null, or a list of texts", lambda value: value is None or _texts(value)),
    },
    "segmenter": {
        "trained_on": ("a list of texts", _texts),
        "practices": ("a list of texts", _texts),
    },
}
"""What it may have."""


def own_arguments(kind: type, given: int, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Return the constructor arguments of a class by name, defaults included.

    A copy of an object is made without any, and takes those of the original afterwards.

    Args:
        kind: The class.
        given: How many leading arguments its surroundings give it; they are left out.
        args: Positional arguments of the call.
        kwargs: Named arguments of the call.
    """
    constructor: Callable = kind.__init__
    signature = inspect.signature(constructor)
    bound = signature.bind_partial(None, *args, **kwargs)
    bound.apply_defaults()
    inherited = list(signature.parameters)[: given + 1]
    return {name: value for name, value in bound.arguments.items() if name not in inherited}


def class_of(path: str, base: type, folder: Path) -> type:
    """Import the class that a folder names.

    Raises:
        ValueError: If it cannot be imported, or is no subclass of the base.
    """
    what = base.__name__
    try:
        kind = resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(
            f"the {what.lower()} in {folder} is a {path}, which cannot be imported; "
            "install its package, or start where it can be found"
        ) from None
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ValueError(f"{path}, named by {folder}, is no {what}")
    return kind


def check_replaceable(folder: Path, what: str) -> None:
    """Refuse to write a folder over something else, or over files that are not the part's own.

    Args:
        folder: Where a part is to be kept.
        what: What may stand there and be replaced: "grounder" or "segmenter".

    Raises:
        ValueError: If something else is there.
    """
    if not folder.exists():
        return
    held = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    if held and not _holds(folder, what):
        raise ValueError(f"{folder} exists and holds no {what}; give another output folder")
    others = [p.name for p in held if p.name not in FROM_HUB]
    if others := [name for name in others if name not in FILES or not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} holds more than a {what}, {others[0]} for one, which would be lost; move "
            "that, or give another output folder"
        )


def _holds(folder: Path, what: str) -> bool:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and set(NEEDED[what]) <= set(config)


def check_config(path: Path, config: Any, what: str) -> None:
    """Check what the ``config.json`` of a part holds; anybody may have written it.

    Args:
        path: The file.
        config: Its content.
        what: The kind of part: "grounder" or "segmenter".

    Raises:
        ValueError: If it lacks a key, or a value is none that it could be.
    """
    needed = NEEDED[what]
    if missing := set(needed) - set(config if isinstance(config, dict) else ()):
        raise ValueError(f"{path} is no {what}'s: it lacks {', '.join(sorted(missing))}")
    check_values(str(path), config, {**needed, **OPTIONAL[what]})


def check_values(where: str, values: Mapping[str, Any], fields: Fields) -> None:
    """Check those values of a JSON object that it has.

    Args:
        where: It stands in, in words.
        values: The object.
        fields: What they must be.

    Raises:
        ValueError: If one is not.
    """
    for key, (wanted, fits) in fields.items():
        if key in values and not fits(values[key]):
            got = json.dumps(values[key])
            got = got if len(got) <= 80 else f"{got[:77]}..."
            raise ValueError(f"{where}: {key} must be {wanted}, got {got}")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write to, which takes the place of another once all went well.

    Where a symbolic link stands, what it points to is replaced.
    """
    folder = Path(os.path.realpath(folder))
    partial = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    older = partial.with_suffix(".old")
    if older.is_dir() and not folder.exists():  # a process that had this number was killed
        older.rename(folder)
    for left in (partial, older):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            os.replace(folder, older)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)
