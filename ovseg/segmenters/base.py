"""The contract of a segmenter."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Segmenter(nn.Module, ABC):
    """A semantic segmentation network. Subclasses take ``num_classes`` first."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, 3, H, W)`` uint8 RGB to logits ``(B, N, H, W)`` of the same size."""

    @abstractmethod
    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar training loss; ``labels (B, H, W)`` int64, 255 = ignore."""
