"""Random views of images and their label maps, for training a segmenter."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Views(nn.Module, ABC):
    """Makes random views; each is a function of the maker's seed, a step and a rank."""

    @abstractmethod
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
            Images in 0..255 and labels; their height and width may be others.
        """


class Augmentation(Views):
    """Turn, shift, scale, mirror and recolour, each image in its own way.

    A view is a function of (seed, step, rank). Labels are never interpolated; what comes into view
    from outside of the image is its reflection.

    Args:
        mirror: Share of images that are mirrored.
        scale: Largest factor of enlarging or shrinking, >= 1.
        turn: Largest angle in degrees.
        shift: Largest shift, as a share of the image.
        recolour: Share of images whose colour channels are permuted; half of these are inverted
            too. For classes that no colour tells apart.
        seed: Another seed gives other views.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        mirror: float = 0.5,
        scale: float = 1.0,
        turn: float = 0.0,
        shift: float = 0.0,
        recolour: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (0 <= mirror <= 1 and 0 <= recolour <= 1):
            raise ValueError(f"mirror and recolour are shares, got {mirror} and {recolour}")
        if scale < 1 or turn < 0 or not 0 <= shift < 1:
            raise ValueError(
                f"scale must be >= 1, turn >= 0 and shift in [0, 1), got {scale}, {turn}, {shift}"
            )
        self.mirror, self.scale, self.turn, self.shift = mirror, scale, turn, shift
        self.recolour, self.seed = recolour, seed

    def forward(
        self, images: Tensor, labels: Tensor, step: int, rank: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return views of a batch.

        Args:
            images: ``(B, 3, H, W)`` uint8 RGB.
            labels: ``(B, H, W)`` int64.
            step: Number of the training step.
            rank: Number of the process.

        Returns:
            Images, float in [0, 255], and labels, of the same shapes.
        """
        mixed = np.random.SeedSequence((self.seed, step, rank)).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        images = self._colours(images.float(), generator)
        theta = self._affine(len(images), generator).to(images.device)
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 has 8 bits for a place
            return self._moved(images, labels, theta)

    def _moved(self, images: Tensor, labels: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels as seen through maps ``(B, 2, 3)``."""
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        view = {"padding_mode": "reflection", "align_corners": False}
        seen = F.grid_sample(images, grid, mode="bilinear", **view)
        ids = F.grid_sample(labels[:, None].float(), grid, mode="nearest", **view)
        return seen, ids[:, 0].long()

    def _colours(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Permute and invert the channels of some images ``(B, 3, H, W)``."""
        draws = torch.rand(len(images), 5, generator=generator)
        order = draws[:, :3].argsort(dim=1)
        chosen = draws[:, 3] < self.recolour
        order[~chosen] = torch.arange(3)
        invert = chosen & (draws[:, 4] < 0.5)
        order, invert = order.to(images.device), invert.to(images.device)
        images = images.gather(1, order[:, :, None, None].expand_as(images))
        return torch.where(invert[:, None, None, None], 255 - images, images)

    def _affine(self, count: int, generator: torch.Generator) -> Tensor:
        """Return ``(B, 2, 3)`` maps from a view's coordinates to the image's, both in [-1, 1]."""
        draws = torch.rand(count, 5, generator=generator)
        angle, size, across, down = (2 * draws[:, :4] - 1).unbind(1)
        angle = angle * math.radians(self.turn)
        size = torch.exp(size * math.log(self.scale))
        sign = torch.where(draws[:, 4] < self.mirror, -1.0, 1.0)
        cos, sin = size * angle.cos(), size * angle.sin()
        across, down = 2 * self.shift * across, 2 * self.shift * down
        rows = [sign * cos, -sin, across, sign * sin, cos, down]
        return torch.stack(rows, dim=1).view(count, 2, 3)
