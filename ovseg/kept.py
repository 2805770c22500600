"""How a trained part is kept as a folder: its class, its arguments, and the writing of it."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any


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
    """Refuse to write a folder over something else.

    Args:
        folder: Where a part is to be kept.
        what: What may stand there, with its ``config.json``, and be replaced: e.g. "grounder".

    Raises:
        ValueError: If something else is there.
    """
    ours = folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))
    if folder.exists() and not ours:
        raise ValueError(f"{folder} exists and holds no {what}; give another output folder")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write to, which takes the place of another once all went well."""
    partial = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    older = partial.with_suffix(".old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            os.replace(folder, older)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)
