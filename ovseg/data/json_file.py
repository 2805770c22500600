"""JSON files that must be what was once written: what is wrong with one is said in a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def read_json(
    path: Path,
    needed: Sequence[str],
    advice: str = "restore it, or delete it and run `predict` again",
) -> dict:
    """Read a JSON file that this package has written.

    Args:
        path: The file.
        needed: What must be there: "a.b" is a key inside of a, "a.*.b" one inside of all in a.
        advice: What to do if it is not.

    Raises:
        ValueError: If it is no JSON, or something is missing.
    """
    return parse_json(path.read_bytes(), str(path), needed, advice)


def parse_json(content: bytes, path: str, needed: Sequence[str], advice: str) -> dict:
    """Return what stands in a JSON file that this package has written; see `read_json`.

    Args:
        content: Of the file.
        path: Where it lies, for messages.
        needed: What must be there.
        advice: What to do if it is not.

    Raises:
        ValueError: If it is no JSON, or something is missing.
    """
    wrong = f"{path} is no {path.rpartition('/')[2]}"
    try:
        data = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{wrong} ({error}): {advice}") from None
    if missing := [key for key in needed if not _has(data, key.split("."))]:
        raise ValueError(f"{wrong} (it has no {missing[0]!r}): {advice}")
    return data


def _has(data: object, keys: Sequence[str]) -> bool:
    if not keys:
        return True
    if not isinstance(data, dict):
        return False
    key, *inner = keys
    if key == "*":
        return all(_has(value, inner) for value in data.values())
    return key in data and _has(data[key], inner)
