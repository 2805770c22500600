"""The clip-art world's models, which travel inside the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

EMBEDDED = "clipart"
"""What to give instead of a folder or file to get the embedded one."""

WEIGHTS = Path(str(files("ovseg"))) / "clipart" / "weights"


def locate(source: str | Path, part: str) -> Path:
    """Return the path itself, or that of an embedded part if the source is "clipart".

    Args:
        source: A path, or "clipart".
        part: Name in `WEIGHTS`: "pipeline", "grounder", "annotator" or "backbone.safetensors".
    """
    return WEIGHTS / part if str(source) == EMBEDDED else Path(source)
