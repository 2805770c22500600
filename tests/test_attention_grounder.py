"""ovseg.grounders.attention: masks out of cross-attention."""

from __future__ import annotations

import pytest
import torch

from ovseg.grounders.attention import AttentionGrounder
from ovseg.structures import Entities, Features, FeatureSpec

SPEC = FeatureSpec({"a": (3, 4)})
ENTITIES = Entities(
    torch.zeros(1, 2, 8), torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)
)


def test_each_map_is_stretched_to_the_unit_interval():
    attention = torch.tensor([[[[0.01, 0.02], [0.03, 0.05]], [[5.0, 1.0], [2.0, 1.0]]]])
    grounder = AttentionGrounder(SPEC, 8, threshold=0.4)
    probability = grounder(Features({}, attention), ENTITIES).sigmoid()
    expected = torch.tensor([[[[0, 0.25], [0.5, 1]], [[1, 0], [0.25, 0]]]])
    torch.testing.assert_close(probability, expected, atol=1e-5, rtol=0)
    assert grounder.threshold == 0.4 and grounder.init_args == {"threshold": 0.4}
    assert not list(grounder.parameters())


def test_a_name_without_a_map_is_nowhere():
    logits = AttentionGrounder(SPEC, 8)(Features({}, torch.zeros(1, 2, 4, 4)), ENTITIES)
    assert logits.isfinite().all() and logits.sigmoid().max() < 1e-5


def test_refusals():
    with pytest.raises(ValueError, match=r"inside \(0, 1\), got 1"):
        AttentionGrounder(SPEC, 8, threshold=1)
    with pytest.raises(ValueError, match="collected no cross-attention"):
        AttentionGrounder(SPEC, 8)(Features({}), ENTITIES)
