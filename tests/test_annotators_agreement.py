"""ovseg.annotators.agreement: the opinion of a second annotator."""

from __future__ import annotations

import json

import pytest
import torch
from acme.annotator import ColorAnnotator
from acme.backbone import ToyBackbone
from torch import nn
from toy_data import request

from ovseg.annotators.agreement import AgreementAnnotator, agreement
from ovseg.structures import Annotation
from ovseg.vocabulary import Vocabulary

WORDS = Vocabulary.load("clipart", "1")


class Shifted(ColorAnnotator):
    """The oracle's masks, some pixels further to the right."""

    def __init__(self, pixels: int, classes: str = "all") -> None:
        super().__init__(classes)
        self.pixels = pixels
        self.weight = nn.Parameter(torch.zeros(1))

    def annotate(self, sample):
        right = super().annotate(sample)
        masks = torch.zeros_like(right.masks)
        masks[..., self.pixels :] = right.masks[..., : masks.shape[-1] - self.pixels]
        return Annotation(masks, right.scores, right.found)

    def check(self, backbone):
        raise ValueError("no, not this one")

    def describe(self):
        return {**super().describe(), "trained_on": [1, 3]}


@pytest.fixture(scope="module")
def sample():
    prompts = ["a photo of a car", "a photo of a bus and a fish"]
    requests = [request(0, prompts[0], "car"), request(1, prompts[1], "bus", "fish")]
    return ToyBackbone().sample(requests)


def bound(*both) -> AgreementAnnotator:
    made = AgreementAnnotator(*both)
    made.bind(WORDS)
    return made


def test_masks_of_the_first_and_iou_with_the_second(sample):
    made = bound(ColorAnnotator("all", instances=True), Shifted(1))
    annotation, alone = made.annotate(sample), made.first.annotate(sample)
    for name in ("masks", "scores", "found", "instances"):
        assert torch.equal(getattr(annotation, name), getattr(alone, name))
    expected = torch.zeros(2, 2)
    for row, k in [(0, 0), (1, 0), (1, 1)]:
        mine = {tuple(p) for p in alone.masks[row, k].nonzero().tolist()}
        width = alone.masks.shape[-1]
        theirs = {(y, x + 1) for y, x in mine if x + 1 < width}
        expected[row, k] = len(mine & theirs) / len(mine | theirs)
    torch.testing.assert_close(annotation.agreement, expected)
    assert ((expected[alone.found] > 0) & (expected[alone.found] < 1)).all()
    assert alone.agreement is None


def test_who_agrees_wholly_and_who_was_not_asked(sample):
    same = bound(ColorAnnotator(), Shifted(0)).annotate(sample)
    assert torch.equal(same.agreement, same.found.float())
    unseen = bound(ColorAnnotator(), Shifted(0, "unseen")).annotate(sample)
    known = torch.isin(sample.entities.class_ids, torch.tensor(WORDS.unseen))
    assert torch.equal(unseen.agreement > 0, known & same.found)


def test_iou_by_hand():
    masks = torch.zeros(2, 1, 3, 1, 4)
    masks[0, 0, 0, 0] = torch.tensor([0.5, 0.9, 0.4, 0.0])
    masks[1, 0, 0, 0] = torch.tensor([0.6, 0.1, 0.7, 0.8])
    masks[:, 0, 1] = 1.0
    found = torch.tensor([[[True, True, True]], [[True, False, True]]])
    one, other = (Annotation(m, f.float(), f) for m, f in zip(masks, found, strict=True))
    assert agreement(one, other).tolist() == [[0.25, 0.0, 0.0]]  # the third: both say nothing


def test_facts_of_both(sample):
    made = bound(ColorAnnotator("seen"), Shifted(1))
    facts = made.describe()
    assert facts["requested_classes"] == list(WORDS.seen) and facts["trained_on"] == [1, 3]
    assert facts["first"] == made.first.describe() and facts["second"] == made.second.describe()
    assert json.dumps(facts) and facts["digest"] == "colours-seen+colours-all"
    assert len(list(made.parameters())) == 1  # so that both move to the device
    with pytest.raises(ValueError, match="no, not this one"):
        made.check(ToyBackbone())
