"""What is said of weights that have been loaded, and what their file says of their training."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ovseg.pretrained import read_json
from ovseg.vocabulary import EVERY

NAMED = 4
"""So many names of tensors are printed, the others counted."""
MARKS = {"pytorch-lightning_version", "trained_on"}
"""By one of these a checkpoint of `fit` is known from public weights."""
BACKGROUND = "background"
"""What networks that have a channel for it call it."""
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


def said_of_training(path: str, content: Any, whole: bool) -> dict[str, list[str]]:
    """Return what a file of weights says of its training, as `Segmenter.learnt_from` has it.

    A checkpoint of `fit` says it itself, the weights of a segmenter's folder in the config.json
    beside them; of other segmentation networks at most the classes are known.

    Args:
        path: Of the file.
        content: Of the file.
        whole: Whether the weights are those of a segmentation network, not of a backbone alone.

    Raises:
        ValueError: If the config.json is none.
    """
    names = None
    if path.endswith(".safetensors"):
        config = Path(path).with_name("config.json")
        content = read_json(config) if config.is_file() else {}
        told = {"segmenter", "classes"} <= set(content)
        content = {"trained_on": content["classes"], **content} if told else {}
    else:
        told = bool(MARKS & set(content))
        names = class_names(content)
    if not told:
        return said_by_names(names) if whole else {}
    return {key: list(content[key]) for key in SAID if isinstance(content.get(key), list)}


def said_by_names(names: Sequence[str] | None) -> dict[str, list[str]]:
    """Return what the class names of a segmentation network from elsewhere say of its training.

    Masks of all of them; without names, masks of every class that there is.

    Args:
        names: In the order of the channels, with or without background.
    """
    if names is None:
        return {"trained_on": [EVERY]}
    classes = [name for name in names if name.lower() != BACKGROUND]
    return {"classes": classes, "trained_on": classes}


def class_names(checkpoint: Any) -> list[str] | None:
    """Return the names of the channels, as MMSegmentation 1 or 0 notes them, if it did."""
    meta = _under(checkpoint, "meta")
    names = _under(meta, "dataset_meta").get("classes") or meta.get("CLASSES")
    readable = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return list(names) if names and readable else None


def _under(node: Any, key: str) -> Mapping:
    value = node.get(key) if isinstance(node, Mapping) else None
    return value if isinstance(value, Mapping) else {}
