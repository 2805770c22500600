"""Random views by MMSegmentation's own transforms, the same for synthetic and real images."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovseg.augment import Views
from ovseg.errors import importing_mmseg
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
            ValueError: If a transform leaves no image, or images of different sizes.
        """
        pixels = images.flip(1).permute(0, 2, 3, 1).cpu().numpy()  # OpenCV's BGR, channels last
        with _seeded((self.seed, step, rank)):
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
            sample = transform(sample)
            if sample is None:
                raise ValueError(f"{type(transform).__name__} left nothing of an image")
        view = np.clip(np.rint(sample["img"]), 0, 255).astype(np.uint8)[..., ::-1]
        ids = np.ascontiguousarray(sample["gt_seg_map"]).astype(np.int64)
        return torch.from_numpy(view.copy()).permute(2, 0, 1), torch.from_numpy(ids)


@contextmanager
def _seeded(key: Sequence[int]) -> Iterator[None]:
    """Seed the generators that transforms draw from, and put them back."""
    before = np.random.get_state(), random.getstate()
    first, second = np.random.SeedSequence(key).generate_state(2)
    np.random.seed(first)
    random.seed(int(second))
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])


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
