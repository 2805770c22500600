"""ovseg.annotators.refined: small regions go to what surrounds them; maps worked out by hand."""

import numpy as np
import pytest
import torch
from acme.annotator import ColorAnnotator
from acme.backbone import ToyBackbone
from toy_data import data_module, live_stream, request

from ovseg.annotators.refined import RefinedAnnotator, vote
from ovseg.structures import Annotation, to_label_map
from ovseg.vocabulary import Vocabulary


def grid(*rows):
    return np.array([[int(pixel) for pixel in row] for row in rows], dtype=np.int64)


BEFORE = grid("00000000", "01110020", "01010000", "01111000", "00000220", "10000220", "00000000")
AFTER = grid("00000000", "01110000", "01110000", "01111000", "00000220", "00000220", "00000000")


def test_by_hand():
    """A hole of 1, a speck of 1 and one of 2 go; 9 and 4 pixels stay, and so do largest regions."""
    assert np.array_equal(vote(BEFORE, 3), AFTER)
    assert np.array_equal(vote(BEFORE, 1), BEFORE)
    assert np.array_equal(vote(BEFORE, 1e9), AFTER)  # the largest of each
    assert np.array_equal(vote(np.zeros((3, 3), np.int64), 5), np.zeros((3, 3)))


def test_who_touches_most_wins_and_the_smallest_goes_first():
    # of the 8 pixels around the single 3 five are 1 and three are 2, and then the other way round
    labels = grid("11222", "11322", "11112", "00000", "03300")
    assert vote(labels, 2)[1, 2] == 1
    labels = grid("12222", "11322", "11222", "00000", "03300")
    assert vote(labels, 2)[1, 2] == 2
    # 1 and 2 touch the single 3 four times each: the lower number
    labels = grid("0111220", "0111220", "0113220", "0112220", "0000000", "3300000")
    assert vote(labels, 2)[2, 3] == 1
    # five 1 surround a single 2, which goes to them first; then all six go to the background
    labels = grid("000000000", "001110000", "001210022", "000000022", "000111110", "000111110")
    assert vote(labels, 2)[2, 3] == 1
    assert not vote(labels, 7)[1:3, 2:5].any()
    assert vote(labels, 6)[1:3, 2:5].all()


def test_corners_connect_and_instances_follow():
    labels = grid("0110000", "0110010", "0000101", "0110000", "0110002")
    expected = grid("0110000", "0110000", "0000000", "0110000", "0110002")
    assert np.array_equal(vote(labels, 4), expected)
    assert np.array_equal(vote(labels, 3), labels)  # three pixels that share corners
    numbers = np.where(labels == 1, 7, 0)
    numbers[labels == 2] = 9
    numbers[1, 5] = 8
    vote(labels, 4, numbers)
    assert numbers[3, 1] == 7 and numbers[1, 5] == 0 and numbers[4, 6] == 9
    # a hole takes the instance that most of its new label's pixels around it have
    labels = np.pad(np.ones((3, 3), np.int64), 2)
    labels[3, 3] = 0
    numbers = np.where(labels, 4, 0)
    numbers[2, 2:5] = 5
    assert vote(labels, 2, numbers)[3, 3] == 1 and numbers[3, 3] == 4


class Soft(ColorAnnotator):
    """Two masks of a size-7 picture, with specks."""

    def annotate(self, sample):
        maps = torch.from_numpy(BEFORE)
        masks = torch.stack([0.8 * (maps == k) + 0.1 for k in (1, 2)])[None].float()
        return Annotation(masks, torch.tensor([[0.9, 0.7]]), torch.tensor([[True, True]]))


@pytest.fixture
def sample():
    return ToyBackbone(size=32).sample([request(0, "a photo of a car and a fish", "car", "fish")])


def bound(annotator, **arguments):
    made = RefinedAnnotator(annotator, **arguments)
    made.bind(Vocabulary.load("clipart", "1"))
    return made


def test_only_what_changes_owner_is_touched(sample):
    made = bound(Soft(), min_region=3 / 56)
    before, after = made.annotator.annotate(sample), made.annotate(sample)
    changed = torch.from_numpy(BEFORE != AFTER)
    assert torch.equal(after.masks[:, :, ~changed], before.masks[:, :, ~changed])
    assert after.masks[0, :, 2, 2].tolist() == [1.0, 0.0]  # the hole
    assert not after.masks[0, :, [1, 5], [6, 0]].any()  # the specks
    ids = torch.tensor([[1, 2]])
    assert torch.equal(to_label_map(after.masks, ids, after.found)[0], torch.from_numpy(AFTER))
    assert not (to_label_map(after.masks, ids, after.found, 0.5, 0.3) == 255).any()
    assert torch.equal(after.scores, before.scores) and torch.equal(after.found, before.found)


def test_what_has_no_specks_stays_as_it_is(sample):
    made = bound(ColorAnnotator("all", instances=True), min_region=0.01)
    alone, refined = made.annotator.annotate(sample), made.annotate(sample)
    for name in ("masks", "scores", "found", "instances"):
        assert torch.equal(getattr(alone, name), getattr(refined, name))
    facts, own = made.describe(), made.annotator.describe()
    assert facts["digest"] == f"{own['digest']}+0.01+0.5" != own["digest"]
    assert facts["refined"] == {"min_region": 0.01, "region_threshold": 0.5}
    assert facts["requested_classes"] == own["requested_classes"]


def test_it_stands_in_a_stream():
    stream = live_stream()
    stream.annotator = RefinedAnnotator(stream.annotator, 0.01)
    data = data_module(predict={"data": stream})
    stream.bind(data.vocabulary)
    batch = stream.complete(stream[[0, 1]], data.backbone)
    assert batch.labels.shape == (2, 32, 32)


@pytest.mark.parametrize("wrong", [{"min_region": 0.0}, {"min_region": 1.0}, {"threshold": 1.5}])
def test_arguments(wrong):
    with pytest.raises(ValueError, match=r"min_region and threshold must be in \(0, 1\), got"):
        RefinedAnnotator(ColorAnnotator(), **wrong)
