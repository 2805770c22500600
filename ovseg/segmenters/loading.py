"""What is said of weights that have been loaded, and what their file says of their training."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ovseg.pretrained import read_json

NAMED = 4
"""So many names of tensors are printed, the others counted."""
MARKS = {"pytorch-lightning_version", "trained_on"}
"""By one of these a checkpoint of `fit` is known from public weights."""
SAID = ("classes", "trained_on", "practices")


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


def said_of_training(path: str, content: Any) -> dict[str, list[str]]:
    """Return what a file of weights says of its training, as `Segmenter.learnt_from` has it.

    A checkpoint of `fit` says it itself, the weights of a segmenter's folder in the config.json
    beside them; public weights say nothing.

    Args:
        path: Of the file.
        content: Of the file.

    Raises:
        ValueError: If the config.json is none.
    """
    if path.endswith(".safetensors"):
        config = Path(path).with_name("config.json")
        content = read_json(config) if config.is_file() else {}
        if not {"segmenter", "classes"} <= set(content):
            return {}
        content = {"trained_on": content["classes"], **content}
    elif not MARKS & set(content):
        return {}
    return {key: list(content[key]) for key in SAID if isinstance(content.get(key), list)}
