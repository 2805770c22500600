"""Facts against hand-made masks and plain loops, and what a filter makes of them."""

import numpy as np
import pytest
import torch

from ovseg.quality import (
    Facts,
    Filter,
    QualityFilter,
    facts_of,
    kinds_of,
    label_facts,
    uncertain_share,
    verdict_of,
)
from ovseg.structures import Annotation, Batch, Entity, Request

LABELS = np.zeros((8, 10), np.uint8)
LABELS[0, :4] = 3  # at the border
LABELS[1, 4] = 3  # joined by a corner
LABELS[4:6, 4:6] = 3  # apart
LABELS[2:4, 7:9] = 5
LABELS[7, 9] = 255
GOOD = Facts("house", True, 0.9, 0.2, 1, 0.1, False, 0.8)


def test_label_facts_by_hand():
    assert label_facts(LABELS, 3) == {"area": 9 / 80, "components": 2, "border": True}
    assert label_facts(LABELS, 5) == {"area": 4 / 80, "components": 1, "border": False}
    assert label_facts(LABELS, 7) == {"area": 0.0, "components": 0, "border": False}
    assert label_facts(LABELS, 0)["area"] == 0.0  # a name outside of the vocabulary


def flooded(mask):
    """Count components by a plain flood over eight neighbours."""
    left, count = {tuple(place) for place in np.argwhere(mask).tolist()}, 0
    while left:
        count, open_ = count + 1, [left.pop()]
        while open_:
            y, x = open_.pop()
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            open_ += near
    return count


@pytest.mark.parametrize("seed", range(5))
def test_facts_of_random_maps_are_those_of_plain_loops(seed):
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (2, 9, 7), generator=random)
    masks = torch.rand(2, 3, 9, 7, generator=random)
    scores, agreement, clip = torch.rand(3, 2, 3, generator=random)
    asked = [(Entity(2, "a"), Entity(1, "b"), Entity(3, "c")), (Entity(3, "d"),)]
    requests = [Request(i, i, "", entities) for i, entities in enumerate(asked)]
    found = torch.tensor([[True, False, True], [True, False, False]])
    annotation = Annotation(masks, scores, found, agreement=agreement, clip=clip)
    batch = Batch(torch.arange(2), requests, labels=labels, found=found, annotation=annotation)
    facts = facts_of(batch)
    assert [len(row) for row in facts] == [3, 1]
    for row, column in ((0, 0), (0, 1), (0, 2), (1, 0)):
        mine, entity = facts[row][column], asked[row][column]
        where = labels[row].numpy() == entity.class_id
        likely = [p for p in masks[row, column].flatten().tolist() if p > 0.25]
        assert mine.name == entity.name and mine.found == found[row, column]
        assert mine.score == pytest.approx(scores[row, column].item(), abs=1e-6)
        assert mine.agreement == pytest.approx(agreement[row, column].item(), abs=1e-6)
        assert mine.clip == pytest.approx(clip[row, column].item(), abs=1e-6)
        assert mine.area == pytest.approx(sum(map(sum, where.tolist())) / 63, abs=1e-6)
        assert mine.components == flooded(where)
        unsure = sum(p < 0.75 for p in likely) / len(likely)
        assert mine.uncertain == pytest.approx(unsure, abs=1e-6)
        rim = [(y, x) for y in range(9) for x in range(7) if y in (0, 8) or x in (0, 6)]
        assert mine.border == any(where[place] for place in rim)


def test_what_was_not_compared_has_no_agreement():
    masks = torch.zeros(1, 1, 4, 4)
    scores, found = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    requests = [Request(0, 0, "", (Entity(1, "a"),))]
    batch = Batch(torch.arange(1), requests, labels=torch.zeros(1, 4, 4), found=found)
    (facts,) = facts_of(batch.replace(annotation=Annotation(masks, scores, found)))[0]
    assert facts == Facts("a", True, 1.0, 0.0, 0, 0.0, False, None)


def test_no_likely_pixel_is_not_uncertain():
    masks = torch.tensor([[[[0.1, 0.25]], [[0.3, 0.75]]]])
    assert uncertain_share(masks).tolist() == [[0.0, 0.5]]


@pytest.mark.parametrize(
    ("bound", "facts", "reason"),
    [
        ({"min_score": 0.95}, {}, "score 0.9 < 0.95"),
        ({"min_area": 0.21}, {}, "area 0.2 < 0.21"),
        ({"max_area": 0.1}, {}, "area 0.2 > 0.1"),
        ({"max_components": 1}, {"components": 3}, "components 3 > 1"),
        ({"max_uncertain": 0.05}, {}, "uncertain 0.1 > 0.05"),
        ({"min_agreement": 0.9}, {}, "agreement 0.8 < 0.9"),
        ({"min_clip": 0.25}, {"clip": 0.21}, "clip 0.21 < 0.25"),
        ({"min_clip": 0.2}, {"clip": 0.21}, ""),
        ({"no_border": True}, {"border": True}, "at the border"),
        ({"must_be_found": True}, {"found": False}, "not found"),
        ({"min_area": 0.5, "min_score": 0.95}, {}, "score 0.9 < 0.95, area 0.2 < 0.5"),
        ({"min_score": 0.9, "min_area": 0.2, "max_area": 0.2, "max_components": 1}, {}, ""),
        ({"max_uncertain": 0.1, "min_agreement": 0.8, "no_border": True}, {}, ""),
        ({"min_score": 1.0, "min_area": 1.0}, {"found": False}, ""),
        ({}, {"found": False}, ""),
    ],
)
def test_one_bound_at_a_time(bound, facts, reason):
    assert QualityFilter(**bound).judge(GOOD._replace(**facts)) == reason


def test_bounds_are_checked():
    with pytest.raises(ValueError, match=r"min_area must be in \[0, 1\] or null, got 2"):
        QualityFilter(min_area=2)
    with pytest.raises(ValueError, match="max_components must be >= 1 or null, got 0"):
        QualityFilter(max_components=0)
    with pytest.raises(ValueError, match="min_agreement needs an annotator that compares two"):
        QualityFilter(min_agreement=0.5).judge(GOOD._replace(agreement=None))
    with pytest.raises(ValueError, match="min_clip needs a ClipScoreAnnotator"):
        QualityFilter(min_clip=0.2).judge(GOOD)


class NoHouses(Filter):
    def __init__(self, word):
        self.word = word

    def judge(self, facts):
        return "unwanted" if facts.name == self.word else ""


def test_a_filter_of_ones_own():
    mine = NoHouses("house")
    assert verdict_of([GOOD, GOOD._replace(name="fish")], mine) == ["unwanted", ""]
    assert verdict_of([GOOD], None) == [""]
    assert mine.describe() == {"class_path": f"{__name__}.NoHouses", "word": "house"}


def test_kinds_leave_the_values_out():
    assert kinds_of("score 1e-05 < 0.95, area 0.2 > 0.1, at the border") == [
        "score < 0.95",
        "area > 0.1",
        "at the border",
    ]
    assert kinds_of("") == []
