"""ovseg.data.photographs: true masks of pictures that the backbone did not make."""

from __future__ import annotations

import json

import pytest
import torch
from acme.backbone import ToyBackbone
from toy_data import data_module, write_dataset

from ovseg.clipart.stream import DrawnScenes
from ovseg.data.mixture import MixtureStream
from ovseg.data.photographs import PhotographStream
from ovseg.data.shards import ShardStream
from ovseg.quality import QualityFilter
from ovseg.structures import Batch
from ovseg.vocabulary import Vocabulary

LABELS = torch.zeros(3, 32, 32, dtype=torch.long)
LABELS[0, :8], LABELS[0, 8:12], LABELS[0, 12:14] = 4, 2, 255
LABELS[1, :, :3] = 7


class Album(DrawnScenes):
    """Three pictures with label maps made by hand; the last shows nothing."""

    def __init__(self):
        super().__init__(3, 0)

    def __getitem__(self, positions):
        rows = list(positions)
        images = torch.arange(3 * 3 * 32 * 32).reshape(3, 3, 32, 32).remainder(256)
        return Batch(torch.tensor(rows), images=images[rows].byte(), labels=LABELS[rows])


@pytest.fixture
def vocabulary():
    return Vocabulary.load("clipart", "1")


def bound(stream, vocabulary):
    stream.bind(vocabulary)
    return stream


def test_a_picture_is_asked_for_what_its_label_map_shows(vocabulary):
    stream = bound(PhotographStream(Album(), seed=5), vocabulary)
    batch = stream[[0, 1, 2]]
    assert [[e.class_id for e in r.entities] for r in batch.requests] == [[2, 4], [7], []]
    first, second = vocabulary[2], vocabulary[4]
    prompt = f"a photo of {first.article} {first.name} and {second.article} {second.name}"
    assert batch.requests[0].prompt == prompt
    assert [prompt[slice(*e.span)] for e in batch.requests[0].entities] == [first.name, second.name]
    assert len({r.seed for r in batch.requests}) == 3


def test_masks_are_those_of_the_label_map(vocabulary):
    stream, backbone = bound(PhotographStream(Album()), vocabulary), ToyBackbone()
    batch = stream.complete(stream[[0, 1, 2]], backbone)
    assert batch.found.tolist() == [[True, True], [True, False], [False, False]]
    areas = batch.annotation.masks.sum((2, 3))
    assert areas.tolist() == [[4 * 32, 8 * 32], [3 * 32, 0], [0, 0]]
    latents = backbone.encode_image(batch.images, batch.requests)
    assert torch.equal(batch.latents, latents)
    again = backbone.features(latents, backbone.timesteps, batch.requests)
    assert torch.equal(batch.features.maps["fine"], again.maps["fine"])


def test_written_as_shards_it_is_read_again(tmp_path, vocabulary):
    stream = PhotographStream(Album(), shard_size=2)
    folder = write_dataset(tmp_path / "data", data_module(2, predict={"data": stream}))
    live = stream.complete(stream[[0, 1, 2]], ToyBackbone())
    stored = bound(ShardStream(str(folder)), vocabulary)
    batch = stored.complete(stored[[0, 1, 2]], ToyBackbone())
    for name in ("images", "labels", "latents", "found"):
        assert torch.equal(getattr(batch, name), getattr(live, name)), name
    assert batch.requests == live.requests
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["counts"]["samples"] == 3 and sorted(facts["shards"]) == [
        "shard-000000.tar",
        "shard-000001.tar",
    ]
    assert facts["annotator"]["images"]["class_path"].endswith("test_photographs.Album")


def test_the_classes_that_masks_teach_are_those_of_the_images(vocabulary):
    seen = bound(PhotographStream(DrawnScenes(4, 0, classes="seen")), vocabulary)
    every = bound(PhotographStream(DrawnScenes(4, 0)), vocabulary)
    assert seen.taught_classes() == set(vocabulary.seen)
    assert every.taught_classes() == set(vocabulary.seen) | set(vocabulary.unseen)


@pytest.mark.parametrize("arguments", [{"shard_size": 0}, {"template": "a photo"}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="shard_size must be >= 1 and the template hold"):
        PhotographStream(Album(), **arguments)


def test_without_a_backbone_it_is_refused():
    with pytest.raises(ValueError, match=r"set data\.backbone"):
        PhotographStream(Album()).check(None)


def test_photographs_are_filtered_as_any_other_samples(tmp_path):
    """The classes of the first cover 4 and 8 of 32 rows, that of the second 3 columns."""
    stream = PhotographStream(Album(), filter=QualityFilter(min_area=0.1))
    write_dataset(tmp_path, data_module(predict={"data": stream}))
    numbers = json.loads((tmp_path / "dataset.json").read_text())["yield"]
    assert (numbers["kept"], numbers["reasons"]) == (2, {"area < 0.1": 1})


def test_photographs_of_several_datasets(vocabulary):
    mixture = MixtureStream([DrawnScenes(3, seed=1), DrawnScenes(3, seed=2)])
    batch = bound(PhotographStream(mixture), vocabulary)[[0, 1, 5]]
    for request, labels in zip(batch.requests, batch.labels, strict=True):
        assert {e.class_id for e in request.entities} == set(labels.unique().tolist()) - {0}


def test_new_views_of_every_epoch_are_passed_on(vocabulary):
    """A position after the last is a view of the same picture, with the same noise."""

    class Views(Album):
        fresh = True

        def __getitem__(self, positions):
            batch = super().__getitem__([p % 3 for p in positions])
            epochs = torch.tensor([p // 3 for p in positions])[:, None, None, None]
            return batch.replace(images=batch.images // (1 + epochs).byte())

    stream = bound(PhotographStream(Views()), vocabulary)
    assert stream.fresh and not PhotographStream(Album()).fresh
    batch = stream[[1, 4]]
    assert batch.requests[0].seed == batch.requests[1].seed
    assert torch.equal(batch.images[1], batch.images[0] // 2)
