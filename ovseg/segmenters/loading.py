"""What is said of weights that have been loaded."""

from __future__ import annotations

import os
from collections.abc import Collection

NAMED = 4
"""So many names of tensors are printed, the others counted."""


def say_loaded(source: str, total: int, made: Collection[str], unused: Collection[str]) -> None:
    """Print one line on what became of some weights, from the first process alone.

    Args:
        source: Where they come from.
        total: Tensors that the network has.
        made: Those that were not in the weights, or had another shape there.
        unused: Those of the weights that the network does not have.
    """
    if any(os.environ.get(key, "0") != "0" for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        return
    print(
        f"weights {source}: {total - len(made)} of {total} tensors loaded; "
        f"newly made: {_names(made)}; not used: {_names(unused)}",
        flush=True,
    )


def _names(keys: Collection[str]) -> str:
    first, more = sorted(keys)[:NAMED], len(keys) - NAMED
    return (", ".join(first) or "none") + (f" and {more} more" if more > 0 else "")
