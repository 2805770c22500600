"""ovseg.names_drawn: shares and IoU counted by hand on a toy that paints boxes."""

from __future__ import annotations

import pytest
import torch
from acme.annotator import ColorAnnotator
from acme.backbone import ToyBackbone, color_of

from ovseg.names_drawn import Seen, look, requests
from ovseg.structures import Annotation
from ovseg.vocabulary import Vocabulary


class LeftHalf(ColorAnnotator):
    """Finds what lies in the left half of the picture."""

    def annotate(self, sample):
        whole = super().annotate(sample)
        masks = whole.masks.clone()
        masks[..., masks.shape[-1] // 2 :] = 0
        return Annotation(masks, whole.scores, whole.found)


def test_prompts_have_an_article_and_the_name_where_it_says():
    words = Vocabulary.load("clipart")
    cases = (("apple", "apple", "an"), ("apple", "fruit", "a"), ("car", "automobile", "an"))
    for key, word, article in cases:
        asked = requests(words[words.id_of(key)], word, 3, 5)
        assert [r.index for r in asked] == [0, 1, 2] and len({r.seed for r in asked}) == 3
        assert {r.prompt for r in asked} == {f"a photo of {article} {word}"}
        (entity,) = asked[0].entities
        start, end = entity.span
        assert asked[0].prompt[start:end] == word and entity.class_id == words.id_of(key)
    first, second = (requests(words[i], words[i].name, 3, 5) for i in (1, 2))
    assert [r.seed for r in first] == [r.seed for r in second]  # names are drawn alike


def test_shares_and_iou_are_those_counted_by_hand():
    vocabulary, backbone = Vocabulary.load("clipart"), ToyBackbone(forget=0.4)
    annotator, half = ColorAnnotator("all"), LeftHalf("all")
    for part in (annotator, half):
        part.bind(vocabulary)
    words = {"a": (vocabulary[3], "boat"), "b": (vocabulary[3], "ship")}
    found = look(backbone, annotator, half, words, images=20, seed=1)  # in batches of 8
    color = torch.tensor(color_of(3), dtype=torch.uint8)[:, None, None]
    ious = []
    for request in requests(vocabulary[3], "boat", 20, 1):
        truth = (backbone.sample([request]).images[0] == color).all(dim=0)
        if truth.any():
            ious.append(float(truth[:, :16].sum() / truth.sum()))
    assert 0 < len(ious) < 20
    assert found["a"].drawn == 100 * len(ious) / 20
    assert found["a"].miou == pytest.approx(100 * sum(ious) / len(ious))
    assert found["b"] == found["a"]
    nothing = look(ToyBackbone(forget=1.1), annotator, half, {"a": words["a"]}, 2, 1)
    assert nothing == {"a": Seen(0, None)}
