"""What YAML does not have and MMSegmentation's transforms ask for."""

from __future__ import annotations

from typing import Any


def tuples(value: Any) -> Any:
    """Make tuples of lists of numbers, at any depth."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    items = [tuples(item) for item in value]
    return tuple(items) if all(isinstance(i, int | float) for i in items) else items
