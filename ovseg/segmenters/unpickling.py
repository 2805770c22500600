"""Torch files that hold more than tensors, read without calling anything that they name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch


class LeftOut:
    """What stands in the place of an object that nobody needs: takes anything, does nothing."""

    def __new__(cls, *_: Any) -> LeftOut:
        """Make one, whatever the object was made from."""
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Drop the object's content."""


# What a checkpoint of MMEngine's Runner names besides tensors: the history of each loss, numpy
# arrays and scalars in it (of numpy 1 and 2), and getattr, by which pickle finds the history's
# methods. None of it is called: getattr could fetch anything, numpy's functions are given bytes of
# the file, and HistoryBuffer.__setstate__ changes its class. Each name stands for a LeftOut.
STOOD_IN = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
)
NAMED = re.compile(r"GLOBAL (\S+)")
"""How torch's error names what it did not load."""


def load_plain(path: str | Path) -> Any:
    """Read a torch file of tensors and plain containers; what is in `STOOD_IN` is a `LeftOut`.

    Raises:
        ValueError: If it is damaged, or holds anything else; names that.
    """
    try:
        with torch.serialization.safe_globals([(LeftOut, name) for name in STOOD_IN]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in many ways
        found = NAMED.search(str(error))
        what = (
            f"hold pickled objects ({found[1]})" if found else "are damaged or hold pickled objects"
        )
        raise ValueError(
            f"weights {path} {what}, which are not loaded: convert them once to safetensors where "
            "you trust them"
        ) from None
