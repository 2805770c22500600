"""Label maps and targets against plain loops."""

import numpy as np
import pytest
import torch

from ovseg.structures import (
    IGNORE,
    Batch,
    FeatureSpec,
    TapSpec,
    entity_targets,
    to_label_map,
)


def loop_label_map(masks, class_ids, valid, threshold, band):
    """The rule of `to_label_map`, pixel by pixel."""
    count, entities, height, width = masks.shape
    labels = np.zeros((count, height, width), dtype=np.int64)
    for b in range(count):
        for y in range(height):
            for x in range(width):
                best, label = -1.0, 0
                for k in range(entities):
                    if valid[b, k] and masks[b, k, y, x] > best:
                        best, label = masks[b, k, y, x], class_ids[b, k]
                if band > 0 and abs(best - threshold) < band:
                    labels[b, y, x] = IGNORE
                elif best >= threshold:
                    labels[b, y, x] = label
    return labels


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("band", [0.0, 0.125])
def test_label_map_equals_a_loop(threshold, band):
    random = np.random.default_rng(0)
    # sixteenths, so that values on the threshold and equal values occur and are exact
    masks = random.integers(0, 17, (3, 4, 6, 5)).astype(np.float32) / 16
    class_ids = random.integers(1, 21, (3, 4))
    valid = random.random((3, 4)) < 0.7
    expected = loop_label_map(masks, class_ids, valid, threshold, band)
    tensors = (torch.from_numpy(a) for a in (masks, class_ids, valid))
    labels = to_label_map(*tensors, threshold=threshold, band=band)
    assert labels.dtype == torch.int64
    assert np.array_equal(labels.numpy(), expected)
    assert (IGNORE in expected) == (band > 0)


def test_label_map_by_hand():
    masks = torch.tensor([[[[0.4, 0.5, 0.6, 0.9]], [[0.3, 0.5, 0.7, 0.8]]]])
    ids, both = torch.tensor([[7, 3]]), torch.tensor([[True, True]])
    assert to_label_map(masks, ids, both).tolist() == [[[0, 7, 3, 7]]]
    only_second = torch.tensor([[False, True]])
    assert to_label_map(masks, ids, only_second).tolist() == [[[0, 3, 3, 3]]]
    assert to_label_map(masks, ids, both, band=0.15).tolist() == [[[255, 255, 3, 7]]]


def test_label_map_without_entities_is_background():
    nobody = torch.zeros(2, 3, dtype=torch.bool)
    masks, ids = torch.ones(2, 3, 4, 4), torch.ones(2, 3, dtype=torch.long)
    assert to_label_map(masks, ids, nobody).sum() == 0
    none = to_label_map(masks[:, :0], ids[:, :0], nobody[:, :0])
    assert none.shape == (2, 4, 4)
    assert none.dtype == torch.int64


def test_label_map_refuses_logits_and_a_negative_band():
    ids, valid = torch.ones(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="sigmoid"):
            to_label_map(torch.full((1, 1, 2, 2), wrong), ids, valid)
    with pytest.raises(ValueError, match="band must be >= 0, got -0.1"):
        to_label_map(torch.zeros(1, 1, 2, 2), ids, valid, band=-0.1)


def test_entity_targets_equal_a_loop():
    random = np.random.default_rng(1)
    labels = random.choice([0, 1, 2, 3, IGNORE], size=(2, 5, 4))
    class_ids = np.array([[2, 1, 0], [3, 3, 1]])
    targets, pixels = entity_targets(torch.from_numpy(labels), torch.from_numpy(class_ids))
    assert (targets.shape, pixels.shape) == ((2, 3, 5, 4), (2, 1, 5, 4))
    assert (targets.dtype, pixels.dtype) == (torch.float32, torch.bool)
    for b, k, y, x in np.ndindex(2, 3, 5, 4):
        assert targets[b, k, y, x] == float(labels[b, y, x] == class_ids[b, k])
        assert pixels[b, 0, y, x] == (labels[b, y, x] != IGNORE)


def test_label_map_and_targets_are_inverse_for_hard_masks():
    labels = torch.randint(0, 4, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 2, 3], [3, 1, 2]])
    targets, _ = entity_targets(labels, ids)
    assert torch.equal(to_label_map(targets, ids, torch.ones(2, 3, dtype=torch.bool)), labels)


def test_feature_spec_survives_json():
    spec = FeatureSpec({"mid": (8, 4), "up": TapSpec(16, 2)}, steps=2, branches=2)
    assert spec.taps["mid"] == TapSpec(channels=8, stride=4)
    expected = {"taps": {"mid": [8, 4], "up": [16, 2]}, "steps": 2, "branches": 2, "probes": {}}
    assert spec.to_dict() == expected
    probing = FeatureSpec(spec.taps, probes={"attn2": (3, 8, 16)})
    assert probing.to_dict()["probes"] == {"attn2": [3, 8, 16]}
    assert FeatureSpec(**probing.to_dict()) == probing
    assert FeatureSpec(**spec.to_dict()) == spec


def test_batch_replace_leaves_the_original_alone():
    batch = Batch(torch.arange(3))
    changed = batch.replace(images=torch.zeros(3, 3, 2, 2, dtype=torch.uint8))
    assert len(changed) == 3
    assert batch.images is None
    assert changed.images is not None
