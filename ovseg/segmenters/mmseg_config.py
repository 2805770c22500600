"""Config files of MMSegmentation: the network that one describes, and how images are normalised."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ovseg.errors import importing_mmseg


class MMSegConfig(NamedTuple):
    """What a config file says.

    Attributes:
        model: Model dict, without its data preprocessor.
        preprocessor: The data preprocessor's; empty if the file has none.
    """

    model: dict[str, Any]
    preprocessor: dict[str, Any]


@contextmanager
def quiet():
    """Import and run MMSegmentation without its warnings and its log of every parameter.

    Raises:
        ImportError: If it, or the system library that OpenCV needs, is missing.
    """
    with importing_mmseg():
        import mmseg.models  # noqa: F401 - registers the models
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger = _logger()
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _logger() -> logging.Logger:
    """Return MMEngine's logger.

    A new one looks up the GPU that has the process's number, and fails where processes on the CPU
    are more than there are GPUs; so it is not told the number.
    """
    from mmengine.logging import MMLogger

    rank = os.environ.pop("LOCAL_RANK", None)
    try:
        return MMLogger.get_current_instance()
    finally:
        if rank is not None:
            os.environ["LOCAL_RANK"] = rank


def read_config(path: str | Path) -> MMSegConfig:
    """Read an mmseg config file (.py, .yaml or .json); one in Python is run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, has no model, or pads images.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no mmseg config file {path}")
    with quiet():
        from mmengine.config import Config

        try:
            config = Config.fromfile(path)
        except Exception as error:  # whatever a file in Python raises
            raise ValueError(
                f"mmseg config {path} cannot be read: {type(error).__name__}: {error}"
            ) from error
    if "model" not in config:
        raise ValueError(f"mmseg config {path} has no `model`")
    model = config.model.to_dict()
    preprocessor = model.pop("data_preprocessor", None) or config.get("data_preprocessor") or {}
    if preprocessor.get("size_divisor"):
        raise ValueError(f"mmseg config {path} pads to a size_divisor, which is not supported")
    return MMSegConfig(model, dict(preprocessor))


def normalisation(preprocessor: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return arguments `mean` and `std` of an `MMSegSegmenter` that do what a preprocessor does.

    Args:
        preprocessor: Of a config file. An empty one gives no arguments, one without mean and std
            those that leave images as they are.

    Raises:
        ValueError: If it does something else, or its network takes BGR.
    """
    if not preprocessor:
        return {}
    kind = str(preprocessor.get("type", "SegDataPreProcessor"))
    if kind.rpartition(".")[2] != "SegDataPreProcessor":
        raise ValueError(
            f"data_preprocessor must be a SegDataPreProcessor, got {kind}: take a network with one"
        )
    if preprocessor.get("test_cfg"):
        raise ValueError(
            "data_preprocessor pads images by a test_cfg, which is not supported: take a network "
            "without, or leave it out if your images have sizes that need no padding"
        )
    if not preprocessor.get("bgr_to_rgb") or preprocessor.get("rgb_to_bgr"):
        raise ValueError(
            "data_preprocessor must have bgr_to_rgb: true, for images here are RGB; got "
            f"bgr_to_rgb: {preprocessor.get('bgr_to_rgb', False)}, "
            f"rgb_to_bgr: {preprocessor.get('rgb_to_bgr', False)}; take a network of RGB images"
        )
    mean, std = preprocessor.get("mean"), preprocessor.get("std")
    if (mean is None) != (std is None):
        raise ValueError(
            f"data_preprocessor must give mean and std, or neither, got mean {mean}, std {std}"
        )
    return {"mean": list(mean or (0.0, 0.0, 0.0)), "std": list(std or (1.0, 1.0, 1.0))}
