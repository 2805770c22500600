"""ovseg.annotators.labelled: which class a label names."""

from __future__ import annotations

from ovseg.annotators.labelled import classes_of
from ovseg.vocabulary import Vocabulary

VOC = Vocabulary.load("voc", "1")


def test_words_of_labels():
    labels = ["Potted_Plant", "television receiver, TV", "couch;settee", "tree", "people"]
    assert classes_of(labels, VOC) == [16, 20, 18, 0, 15]
    assert classes_of(["fish", "bicycle"], VOC) == [0, 2]
