"""ovseg.grounders.attention: masks out of cross-attention."""

from __future__ import annotations

import pytest
import torch

from ovseg.grounders.attention import AttentionGrounder
from ovseg.structures import Entities, Features, FeatureSpec

SPEC = FeatureSpec({"coarse": (3, 8), "a": (3, 4)})
ENTITIES = Entities(
    torch.zeros(1, 2, 8), torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)
)


def features(attention: torch.Tensor | None, size: int) -> Features:
    """Return attention of images of ``4 * size`` pixels."""
    return Features({"a": torch.zeros(1, 1, 1, 3, size, size)}, attention)


def test_each_map_is_stretched_to_the_unit_interval():
    attention = torch.tensor([[[[0.01, 0.02], [0.03, 0.05]], [[5.0, 1.0], [2.0, 1.0]]]])
    attention = attention.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    grounder = AttentionGrounder(SPEC, 8, threshold=0.4)
    probability = grounder(features(attention, size=1), ENTITIES).sigmoid()
    expected = torch.tensor([[[[0, 0.25], [0.5, 1]], [[1, 0], [0.25, 0]]]])
    expected = expected.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(probability, expected, atol=1e-5, rtol=0)
    assert grounder.threshold == 0.4 and grounder.init_args == {"threshold": 0.4}
    assert not list(grounder.parameters())


def test_a_name_without_a_map_is_nowhere():
    logits = AttentionGrounder(SPEC, 8)(features(torch.zeros(1, 2, 4, 4), size=2), ENTITIES)
    assert logits.shape == (1, 2, 8, 8)
    assert logits.isfinite().all() and logits.sigmoid().max() < 1e-5


def test_maps_are_resized_before_they_become_logits():
    """A ramp of two cells over eight pixels: 0, 0, then steps of 1/4 between the cells' middles."""
    attention = torch.tensor([[[[2.0, 6.0]], [[6.0, 2.0]]]]).expand(1, 2, 2, 2)
    probability = AttentionGrounder(SPEC, 8)(features(attention, size=2), ENTITIES).sigmoid()
    ramp = torch.tensor([0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1])
    for column, expected in enumerate((ramp, ramp.flip(0))):
        torch.testing.assert_close(probability[0, column], expected.expand(8, 8), atol=1e-5, rtol=0)


def test_refusals():
    with pytest.raises(ValueError, match=r"inside \(0, 1\), got 1"):
        AttentionGrounder(SPEC, 8, threshold=1)
    with pytest.raises(ValueError, match="collected no cross-attention"):
        AttentionGrounder(SPEC, 8)(features(None, size=1), ENTITIES)
