"""ovseg.data.resampled: attention of a whole sampling, for stored samples."""

from __future__ import annotations

import pytest
import torch
from acme.annotator import ColorAnnotator
from toy_data import data_module, write_dataset

from ovseg.backbones.unet import UNetBackbone
from ovseg.data.found import FoundStream
from ovseg.data.live import LiveStream
from ovseg.data.prompts import TemplatePrompts
from ovseg.data.resampled import ResampledStream
from ovseg.vocabulary import Vocabulary

TAPS, BLOCKS = ["down_blocks.0.attentions.0"], ("down_blocks.1", "up_blocks.1")


class Everything(ColorAnnotator):
    """An annotator that finds every name, wherever."""

    def annotate(self, sample):
        found = super().annotate(sample)
        found.found = sample.entities.valid.clone()
        return found


def backbone(tiny_pipeline, **changes) -> UNetBackbone:
    return UNetBackbone(tiny_pipeline, TAPS, **{"steps": 4, "attention": BLOCKS} | changes)


@pytest.fixture(scope="module")
def dataset(tiny_pipeline, tmp_path_factory):
    stream = LiveStream(TemplatePrompts({2: 1}), Everything("all"), 4, shard_size=4)
    data = data_module(4, backbone(tiny_pipeline), predict={"data": stream})
    return str(write_dataset(tmp_path_factory.mktemp("dataset"), data))


def completed(stream, model):
    stream.bind(Vocabulary.load("clipart", "1"))
    return stream.complete(stream[range(len(stream))], model)


def test_attention_is_that_of_all_steps(dataset, tiny_pipeline):
    model = backbone(tiny_pipeline)
    stored = completed(FoundStream(dataset), model)
    again = completed(ResampledStream(dataset), model)
    sample = model.sample(again.requests)
    assert len(again) == 4 and torch.equal(again.features.attention, sample.features.attention)
    assert torch.equal(again.images, sample.images)  # the same samples come out again
    assert torch.equal(again.labels, stored.labels) and torch.equal(again.found, stored.found)
    for tap, maps in stored.features.maps.items():
        torch.testing.assert_close(again.features.maps[tap], maps, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(again.features.attention, stored.features.attention, rtol=1e-3)


def test_another_course_is_refused(dataset, tiny_pipeline):
    stream = ResampledStream(dataset, limit=2)
    with pytest.raises(ValueError, match="is to be sampled again: set data.backbone"):
        completed(stream, None)
    other = backbone(tiny_pipeline, guidance_scale=3.0)
    with pytest.raises(ValueError, match="another way: guidance_scale 7.5 there, 3.0 here$"):
        completed(stream, other)


def test_photographs_are_refused(dataset, tiny_pipeline):
    stream = ResampledStream(dataset)
    stream.source.manifest["real_images"] = True
    with pytest.raises(ValueError, match="holds photographs, which no model samples again"):
        stream.check(backbone(tiny_pipeline))
