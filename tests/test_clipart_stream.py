"""Drawn scenes as a stream."""

import pytest
import torch

from ovseg.clipart.stream import DrawnScenes
from ovseg.vocabulary import Vocabulary


def _stream(**arguments) -> DrawnScenes:
    stream = DrawnScenes(**{"size": 40, "seed": 3, **arguments})
    stream.bind(Vocabulary.load("clipart", "1"))
    return stream


def test_batches_hold_images_and_class_ids():
    batch = _stream()[[0, 7]]
    assert batch.images.shape == (2, 3, 64, 64) and batch.images.dtype == torch.uint8
    assert batch.labels.shape == (2, 64, 64) and batch.labels.dtype == torch.int64
    assert batch.indices.tolist() == [0, 7]
    for labels in batch.labels:
        assert len(labels.unique()) == 3  # background and two classes


def test_a_scene_does_not_depend_on_its_batch():
    stream = _stream()
    assert torch.equal(stream[[4, 9]].images[1], stream[[9]].images[0])


def test_classes_and_numbers_of_objects():
    vocabulary = Vocabulary.load("clipart", "1")
    seen, unseen = set(vocabulary.seen), set(vocabulary.unseen)
    for position in range(20):
        mixed = set(_stream(classes="mixed")[[position]].labels.unique().tolist()) - {0}
        assert len(mixed & seen) == 1 and len(mixed & unseen) == 1
        alone = set(_stream(classes="unseen", objects=[1])[[position]].labels.unique().tolist())
        assert len(alone - {0}) == 1 and alone - {0} <= unseen
    turns = [len(_stream(objects=[1, 2])[[n]].labels.unique()) - 1 for n in range(4)]
    assert turns == [1, 2, 1, 2]


def test_pixels_of_unseen_classes_are_ignored_where_only_seen_ones_are_labelled():
    vocabulary = Vocabulary.load("clipart", "1")
    whole, part = _stream()[[0, 1, 2, 3, 4]], _stream(labelled="seen")[[0, 1, 2, 3, 4]]
    unseen = torch.isin(whole.labels, torch.tensor(vocabulary.unseen))
    assert unseen.any() and torch.equal(whole.images, part.images)
    assert torch.equal(part.labels, whole.labels.masked_fill(unseen, 255))
    assert _stream().taught_classes() == {*vocabulary.seen, *vocabulary.unseen}
    assert _stream(labelled="seen").taught_classes() == set(vocabulary.seen)
    assert _stream(labelled="seen", classes="unseen").taught_classes() == set()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match='must be "all" or "seen"'):
        DrawnScenes(size=1, seed=0, labelled="some")
    with pytest.raises(ValueError, match="size must be >= 1"):
        DrawnScenes(size=0, seed=0)
    with pytest.raises(ValueError, match="numbers from 1 to 4"):
        DrawnScenes(size=1, seed=0, objects=[5])
    with pytest.raises(ValueError, match="cannot draw aeroplane"):
        DrawnScenes(size=1, seed=0).bind(Vocabulary.load("voc", "1"))
