import math

import pytest
import torch

from ovseg.modules.grounding_scores import Calibration, GroundingScores, scored, shown
from ovseg.structures import Batch, Entities, Features
from ovseg.vocabulary import Vocabulary


def batch() -> Batch:
    """Three 8x8 images: 1 in the left and 2 in the right half; 3 in the top half, 4 was not
    found; 3 alone in the lower right quarter."""
    labels = torch.zeros(3, 8, 8, dtype=torch.long)
    labels[0, :, :4], labels[0, :, 4:] = 1, 2
    labels[1, :4] = 3
    labels[2, 4:, 4:] = 3
    ids = torch.tensor([[1, 2], [3, 4], [3, 0]])
    return Batch(
        torch.arange(3),
        labels=labels,
        found=torch.tensor([[True, True], [True, False], [True, False]]),
        entities=Entities(torch.zeros(3, 2, 4), ids, ids > 0),
        features=Features(
            {"low": torch.zeros(3, 1, 1, 5, 2, 2), "high": torch.zeros(3, 1, 1, 5, 4, 4)}
        ),
    )


@pytest.fixture
def words() -> Vocabulary:
    return Vocabulary.load("clipart")


def test_only_images_with_every_entity_found_count():
    assert scored(batch()).tolist() == [[True, True], [False, False], [True, False]]


def test_what_another_object_covers_has_no_mask():
    """One in whose place the label map has another, and one of which all is ignored."""
    covered = batch()
    covered.labels[0] = 2
    covered.labels[2][covered.labels[2] == 3] = 255
    assert shown(covered).tolist() == [[False, True], [True, False], [False, False]]
    assert not scored(covered).any()


def test_scores_by_hand(words):
    scores = GroundingScores(words)
    masks = torch.zeros(3, 2, 8, 8)
    masks[0, 0, :, :4] = 0.9  # right
    masks[0, 1, :, :4] = 0.9  # the other object's place
    masks[1] = 1.0  # does not count
    masks[2, 0, 4:] = 0.7  # twice too wide: 16 of 32
    scores.update(masks, batch(), threshold=0.6)
    scores.update_controls(batch())
    results = scores.compute()
    assert results["per_class"] == pytest.approx({"car": 100.0, "bus": 0.0, "boat": 50.0})
    assert results["miou"] == pytest.approx(50.0)
    assert results["miou_images"] == pytest.approx(50.0)
    assert results["choice"] == pytest.approx(50.0)
    # swapped: both masks lie left; that fits 1 fully and 2 not at all. 3 stands alone: skipped
    assert results["swapped"] == pytest.approx({"miou": 50.0, "miou_images": 50.0, "choice": 50.0})
    # foreground: the whole image for 1 and 2 (a half each), exact for 3
    assert results["foreground"]["miou"] == pytest.approx((50 + 50 + 100) / 3)
    assert results["foreground"]["choice"] == 0.0  # it fits neither better than the other
    # on the 4x4 grid every edge lies between cells
    assert results["ceiling"]["miou"] == pytest.approx(100.0)
    assert results["images"] == 2
    assert results["excluded"] == pytest.approx(1 / 3)


def test_compute_starts_anew(words):
    scores = GroundingScores(words)
    masks = torch.ones(3, 2, 8, 8)
    scores.update(masks, batch(), 0.5)
    first = scores.compute()
    scores.update(masks, batch(), 0.5)
    assert scores.compute() == first
    assert "ceiling" not in first  # validation does not make the controls


def test_calibration_takes_the_middle_of_the_best_thresholds():
    masks = torch.zeros(3, 2, 8, 8)
    for row, column in ((0, 0), (0, 1), (2, 0)):
        masks[row, column] = 0.3
        truth = batch().labels[row] == batch().entities.class_ids[row, column]
        masks[row, column][truth] = 0.7
    calibration = Calibration(21, grid=(0.2, 0.4, 0.5, 0.6, 0.8))
    calibration.update(masks, batch())
    assert calibration.best() == 0.5
    with pytest.raises(ValueError, match="no validation image"):
        calibration.metric.update(*_nothing())
        calibration.best()


def _nothing():
    no = torch.zeros(1, 1, dtype=torch.bool)
    maps = torch.zeros(1, 1, 2, 2)
    return maps, maps, maps.bool(), no.long(), no


def test_random_names_and_presence_by_hand(words):
    scores = GroundingScores(words)
    right, wrong = torch.zeros(3, 2, 8, 8), torch.ones(3, 2, 8, 8)
    right[0, 0, :, :4], right[0, 1, :, 4:], right[2, 0, 4:, 4:] = 0.9, 0.4, 0.7
    scores.update(right, batch(), threshold=0.3)
    scores.update_renamed("random_names", wrong, batch(), threshold=0.3)
    scores.update_renamed("synonyms", right, batch(), threshold=0.3)
    here = torch.tensor([[0.9, 0.4], [-5.0, -5.0], [0.7, -5.0]])
    absent = torch.tensor([[0.5, 0.8], [9.0, 9.0], [0.1, 9.0]])
    asked = torch.tensor([[True, True], [True, True], [True, False]])
    scores.update_presence(here, absent, asked, batch())
    results = scores.compute()
    # the whole image: halves for 1 and 2, a quarter for 3
    assert results["random_names"]["miou"] == pytest.approx((50 + 50 + 25) / 3)
    assert results["synonyms"] == {key: results[key] for key in ("miou", "miou_images", "choice")}
    # of the 9 pairs (0.9, 0.4, 0.7) x (0.5, 0.8, 0.1), 6 are in order: 3 + 1 + 2
    assert results["presence"] == pytest.approx(100 * 6 / 9)
    scores.update(right, batch(), threshold=0.3)
    assert "presence" not in scores.compute()  # forgotten, and not made in validation


def test_presence_needs_names_of_both_kinds(words):
    scores = GroundingScores(words)
    masks = torch.zeros(3, 2, 8, 8)
    scores.update(masks, batch(), threshold=0.5)
    here = torch.zeros(3, 2)
    scores.update_presence(here, here, torch.zeros(3, 2, dtype=torch.bool), batch())
    assert math.isnan(scores.compute()["presence"])
