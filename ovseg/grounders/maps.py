"""What grounders share: maps of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from ovseg.structures import FeatureSpec


def groups_by_stride(spec: FeatureSpec) -> list[list[str]]:
    """Return tap names grouped by stride, coarsest group first, in network order within one."""
    taps = sorted(spec.taps, key=lambda tap: -spec.taps[tap].stride)
    return [list(group) for _, group in groupby(taps, key=lambda tap: spec.taps[tap].stride)]


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``(B, C, h, w)`` bilinearly."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class MultiscaleProjection(nn.Conv2d):
    """A 1x1 convolution over maps of several sizes, brought to one size but never concatenated.

    It commutes with the resizing, so that each map is projected at its own size first.

    Args:
        channels: Of each map.
        width: Channels of the result.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__(sum(channels), width, kernel_size=1)
        self.channels = list(channels)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Map ``(N, C, h, w)`` each, C, h and w of each its own, to ``(N, width, *size)``."""
        weights = self.weight.split(self.channels, dim=1)
        sums: dict[tuple, Tensor] = {}
        for x, weight in zip(maps, weights, strict=True):
            shape = tuple(x.shape[2:])
            part = conv2d(x, weight)
            sums[shape] = sums[shape] + part if shape in sums else part
        return sum(resize(part, size) for part in sums.values()) + self.bias[:, None, None]
