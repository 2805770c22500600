"""A grounder that learns which features look like which name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ovseg.grounders.base import Grounder
from ovseg.structures import Entities, Features, FeatureSpec


class NearnessGrounder(Grounder):
    """A pixel belongs to a name if both lie near each other in a learnt space.

    Args:
        feature_spec: Decides the input of the feature's projection (first tap, first step).
        text_width: Decides the input of the name's projection.
        width: Size of the space.
    """

    def __init__(self, feature_spec: FeatureSpec, text_width: int, width: int = 3) -> None:
        super().__init__(feature_spec, text_width)
        if width < 1:
            raise ValueError(f"width must be >= 1, got {width}")
        self.tap, tap = next(iter(feature_spec.taps.items()))
        self.of_feature = nn.Conv2d(tap.channels, width, 1)
        self.of_name = nn.Linear(text_width, width)
        self.radius = nn.Parameter(torch.ones(()))

    def forward(self, features: Features, entities: Entities) -> Tensor:
        here = self.of_feature(features.maps[self.tap][:, 0, -1])
        there = self.of_name(entities.text)[..., None, None]
        return 4 * self.radius - 4 * (here[:, None] - there).square().sum(dim=2)
