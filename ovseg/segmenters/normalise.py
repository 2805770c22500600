"""Images as networks that were trained on ImageNet want them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Normalise(nn.Module):
    """Subtract a mean and divide by a standard deviation; neither is saved with the weights.

    Args:
        mean: RGB mean in 0..255.
        std: RGB standard deviation in 0..255.

    Raises:
        ValueError: If they are not three numbers each, or a deviation is not positive.
    """

    def __init__(
        self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std are three numbers, std positive; got {mean} and {std}")
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, 3, H, W)`` in 0..255, of any dtype, to float of the same shape."""
        return (images.float() - self.mean) / self.std
