"""What the modules are helped by: names of streams, a grounder to begin with, results as a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from ovseg.backbones.base import DiffusionBackbone
from ovseg.grounders.base import Grounder
from ovseg.grounders.folder import load_grounder
from ovseg.kept import check_replaceable
from ovseg.results import RESULTS, write_file
from ovseg.vocabulary import Vocabulary


def stream_names(module: LightningModule, stage: str) -> list[str]:
    """Return the names of the data module's streams of "val" or "test", in loader order."""
    streams = getattr(getattr(module.trainer, "datamodule", None), stage, None)
    return list(streams) if isinstance(streams, Mapping) else [stage]


def train_stream(module: LightningModule) -> Any:
    """Return the data module's training stream, or None."""
    return getattr(getattr(module.trainer, "datamodule", None), "train", None)


def load_start(
    folder: str, asked: Grounder, backbone: DiffusionBackbone, training: bool
) -> Grounder:
    """Load the grounder to begin with, in train mode.

    Args:
        folder: Grounder folder.
        asked: The grounder of the configuration.
        backbone: Whose features it will be given.
        training: Whether it will be trained: then its arguments must be those asked for.

    Raises:
        FileNotFoundError, ValueError: As `load_grounder` does, or if it is of another kind.
    """
    loaded = load_grounder(folder, backbone)
    if type(loaded) is not type(asked):
        raise ValueError(
            f"{folder} holds a {type(loaded).__name__}, model.init_args.grounder is a "
            f"{type(asked).__name__}: name the same class"
        )
    here, there = (
        {k: list(v) if isinstance(v, tuple) else v for k, v in grounder.init_args.items()}
        for grounder in (asked, loaded)
    )
    differing = [
        f"{key}={there.get(key)} there, {here.get(key)} here"
        for key in {**here, **there}
        if here.get(key) != there.get(key)
    ]
    if training and differing:
        raise ValueError(
            f"the grounder in {folder} has other arguments than model.init_args.grounder: "
            f"{'; '.join(differing)}: name those of the folder, a training goes on with them"
        )
    return loaded.train()  # the loader gives it in eval mode


def by_class(values: Sequence[float], vocabulary: Vocabulary) -> dict[str, float]:
    """Key per-class values (background first) by class; classes without a value are left out."""
    return {c.key: v for c in vocabulary.classes if not math.isnan(v := float(values[c.id]))}


def write_results(module: LightningModule, results: dict) -> Path:
    """Write results.json into the trainer's default_root_dir, from rank 0, all or nothing.

    Numbers are rounded to 4 decimals, NaN becomes null.
    """
    text = json.dumps(_plain(results), indent=2)
    return write_output(module, RESULTS, f"{text}\n".encode())


def write_output(module: LightningModule, name: str, content: bytes) -> Path:
    """Write a file into the trainer's default_root_dir, from rank 0, all or nothing."""
    path = Path(module.trainer.default_root_dir) / name
    if module.trainer.is_global_zero and not module.trainer.fast_dev_run:
        write_file(path, content)
    return path


def check_writable(folder: str | Path) -> None:
    """Fail now, not after hours, if a folder cannot be written.

    Raises:
        PermissionError: If it cannot.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"cannot write to {folder}: {error.strerror}") from None


def check_output(folder: str | Path, what: str) -> None:
    """Fail now if the folder of a trained part could not be written in the end.

    Args:
        folder: Where.
        what: The kind of part: "grounder" or "segmenter".

    Raises:
        PermissionError: If its parent cannot be written.
        ValueError: If something else is there.
    """
    folder = Path(os.path.realpath(folder))  # what a link points to is replaced
    check_writable(folder.parent)
    check_replaceable(folder, what)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, int) or value is None or isinstance(value, str):
        return value
    number = float(value)
    return None if math.isnan(number) else round(number, 4)
