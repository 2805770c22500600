"""Random views by MMSegmentation's own transforms, the same for synthetic and real images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovseg.augment import Views
from ovseg.errors import importing_mmseg
from ovseg.seeded import seeded
from ovseg.tuples import tuples


class MMSegAugmentation(Views):
    """Transforms of MMSegmentation and mmcv, applied to each image and its label map.

    They draw from global generators; here these are seeded for each batch and put back, so that a
    view is a function of (seed, step, rank). They run on the CPU, in the process that trains.

    Args:
        transforms: As in a pipeline of MMSegmentation, without loading and packing, e.g.
            ``{type: RandomCrop, crop_size: [512, 512], cat_max_ratio: 0.75}``. `Pad` gives labels
            255 by default.
        seed: Another seed gives other views.

    Raises:
        ValueError: If a transform cannot be built.
    """

    def __init__(self, transforms: list[dict], seed: int = 0) -> None:
        super().__init__()
        self.transforms = _build(transforms)
        self.seed = seed

    def forward(
        self, images: Tensor, labels: Tensor, step: int, rank: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return views of a batch.

        Args:
            images: ``(B, 3, H, W)`` uint8 RGB.
            labels: ``(B, H, W)`` int64, 255 = ignore.
            step: Number of the training step.
            rank: Number of the process.

        Returns:
            Images, uint8 RGB, and labels, all of one size.

        Raises:
            ValueError: If a transform cannot be applied to an image that is loaded, or leaves none,
                or images of different sizes.
        """
        pixels = images.flip(1).permute(0, 2, 3, 1).cpu().numpy()  # OpenCV's BGR, channels last
        with seeded((self.seed, step, rank)):
            pairs = [self._view(*pair) for pair in zip(pixels, labels.cpu().numpy(), strict=True)]
        sizes = {f"{ids.shape[0]} x {ids.shape[1]}" for _, ids in pairs}
        if len(sizes) > 1:
            raise ValueError(
                f"views of {' and '.join(sorted(sizes)[:2])} pixels make no batch: let the last of "
                "the transforms be {type: Pad, size: [512, 512]}, of the size of the crops"
            )
        views, ids = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return views.to(images.device), ids.to(labels.device)

    def _view(self, image: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        """Transform an image ``(H, W, 3)`` uint8 BGR and its labels ``(H, W)``."""
        sample: dict[str, Any] | None = {
            "img": np.ascontiguousarray(image),
            "img_shape": image.shape[:2],
            "ori_shape": image.shape[:2],
            "gt_seg_map": labels.astype(np.uint8),
            "seg_fields": ["gt_seg_map"],
        }
        for transform in self.transforms:
            sample = _applied(transform, sample)
        view = np.clip(np.rint(sample["img"]), 0, 255).astype(np.uint8)[..., ::-1]
        ids = np.ascontiguousarray(sample["gt_seg_map"]).astype(np.int64)
        return torch.from_numpy(view.copy()).permute(2, 0, 1), torch.from_numpy(ids)


def _applied(transform: Callable[[dict], Any], sample: dict[str, Any]) -> dict[str, Any]:
    """Apply a transform to a sample, and check that it leaves an image and its labels.

    Raises:
        ValueError: If it fails, or does not.
    """
    name = type(transform).__name__
    try:
        left = transform(sample)
    except MemoryError:
        raise
    except Exception as error:  # each fails in its own way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"the transform {name} cannot be applied to an image and its label map that are loaded "
            f"({reason}): mend its arguments, or leave it out if it is one of loading or packing"
        ) from None
    if left is None:
        raise ValueError(f"{name} left nothing of an image")
    if not {"img", "gt_seg_map"} <= set(left):
        raise ValueError(
            f"the transform {name} leaves no image with a label map: leave out loading and packing"
        )
    return left


def _build(transforms: Sequence[dict]) -> list[Any]:
    with importing_mmseg(), redirect_stdout(StringIO()):  # it prints that a client is absent
        import mmseg.datasets  # noqa: F401 - registers datasets and transforms
        from mmengine.registry import DefaultScope
        from mmseg.registry import TRANSFORMS
    with warnings.catch_warnings(), DefaultScope.overwrite_default_scope("mmseg"):
        warnings.simplefilter("ignore")
        try:
            return [TRANSFORMS.build(tuples(dict(transform))) for transform in transforms]
        except (KeyError, TypeError, AssertionError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"cannot build the transforms: {reason}") from None
