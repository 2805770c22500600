"""How a segmenter that was trained on crops sees a whole image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.segmenters.base import Segmenter


class Inference:
    """The mean of a segmenter's logits over windows, mirror images and sizes.

    Args:
        crop: Side of square windows, as MMSegmentation's slide mode has them: the last one of a row
            or column is moved back inside of the image. None sees the whole image at once.
        stride: Distance of the windows; their side by default.
        flips: See the mirror image too.
        scales: Sizes, relative to the image's, at which it is seen.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        crop: int | None = None,
        stride: int | None = None,
        flips: bool = False,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        if crop is None and stride is not None:
            raise ValueError("a stride needs windows: give crop")
        if crop is not None and crop < 1:
            raise ValueError(f"crop must be >= 1, or null to see the whole image, got {crop}")
        if stride is not None and not 1 <= stride <= crop:
            raise ValueError(f"stride must be between 1 and crop, got {stride} and {crop}")
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales must be positive numbers, at least one, got {scales}")
        self.crop, self.stride = crop, crop if stride is None else stride
        self.flips, self.scales = flips, [float(scale) for scale in scales]

    def describe(self) -> dict:
        """Return the arguments as JSON-ready values."""
        return {
            "crop": self.crop,
            "stride": self.stride,
            "flips": self.flips,
            "scales": self.scales,
        }

    def in_words(self) -> str:
        """Say windows and sizes; nothing if an image is seen at once, as it is."""
        parts = []
        if self.crop is not None:
            every = f" every {self.stride}" if self.stride != self.crop else ""
            parts.append(f"in windows of {self.crop} pixels{every}")
        if self.scales != [1.0]:
            parts.append(f"scaled by {', '.join(f'{scale:g}' for scale in self.scales)}")
        return f"seen {' and '.join(parts)}" if parts else ""

    def __call__(self, segmenter: Segmenter, images: Tensor) -> Tensor:
        """Map images ``(B, 3, H, W)`` in 0..255 to logits ``(B, N, H, W)``."""
        total, count = 0, 0
        for logits in self._views(segmenter, images):
            total, count = total + logits, count + 1
        return total / count

    def _views(self, segmenter: Segmenter, images: Tensor) -> Iterator[Tensor]:
        """Yield the logits of each size and mirror image, at the image's size."""
        for scale in self.scales:
            seen = _resized(images, scale)
            yield _back(self._windows(segmenter, seen), images)
            if self.flips:
                yield _back(self._windows(segmenter, seen.flip(3)).flip(3), images)

    def _windows(self, segmenter: Segmenter, images: Tensor) -> Tensor:
        """Return the mean of the logits of all windows."""
        if self.crop is None:
            return segmenter(images)
        total, count = None, images.new_zeros(images.shape[-2:], dtype=torch.float32)
        for top in self._starts(images.shape[2]):
            for left in self._starts(images.shape[3]):
                rows, columns = slice(top, top + self.crop), slice(left, left + self.crop)
                logits = segmenter(images[:, :, rows, columns])
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], *images.shape[-2:])
                total[:, :, rows, columns] += logits
                count[rows, columns] += 1
        return total / count

    def _starts(self, length: int) -> list[int]:
        """Return where the windows along a side begin."""
        last = max(length - self.crop, 0)
        return [*range(0, last, self.stride), last]


def _resized(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    shrinks = scale < 1
    return F.interpolate(
        images.float(), size, mode="bilinear", align_corners=False, antialias=shrinks
    )


def _back(logits: Tensor, images: Tensor) -> Tensor:
    if logits.shape[-2:] == images.shape[-2:]:
        return logits
    return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
