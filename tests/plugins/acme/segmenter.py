"""A segmenter that looks at one pixel at a time."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ovseg.segmenters.base import Segmenter


class PixelSegmenter(Segmenter):
    """Classify each pixel by its colour.

    Args:
        num_classes: Number of classes with background.
        hidden: Width of the hidden layers.
    """

    def __init__(self, num_classes: int, hidden: int = 64) -> None:
        super().__init__(num_classes)
        if hidden < 1:
            raise ValueError(f"hidden must be >= 1, got {hidden}")
        self.layers = nn.Sequential(
            nn.Conv2d(3, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, num_classes, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.float() / 127.5 - 1)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self(images), labels, ignore_index=255)
