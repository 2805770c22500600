"""ovseg.data.cache: features made once, and equal ever after."""

import pytest
import torch
from toy_data import data_module, live_stream, request, write_dataset

from ovseg.backbones.unet import UNetBackbone
from ovseg.data.cache import FeatureCache
from ovseg.data.shards import ShardStream
from ovseg.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def backbone(tiny_pipeline):
    return UNetBackbone(
        tiny_pipeline, ["mid_block"], steps=2, attention=("mid_block",), probes=("mid_block",)
    )


@pytest.fixture(scope="module")
def dataset(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder, data_module(backbone=backbone, predict={"data": live_stream(6)}))


def test_features_are_made_once_and_equal_in_any_batch(dataset, backbone, monkeypatch):
    plain, cached = ShardStream(str(dataset)), ShardStream(str(dataset), cache=True)
    for stream in (plain, cached):
        stream.bind(Vocabulary.load("clipart", "1"))
    expected = {
        str(places): plain.complete(plain[places], backbone)
        for places in ([0, 1, 2], [5, 1, 4, 0], [3], [2])
    }
    asked = []
    make = backbone.features
    monkeypatch.setattr(
        backbone, "features", lambda x, t, r: asked.extend(i.index for i in r) or make(x, t, r)
    )
    for places in ([0, 1, 2], [5, 1, 4, 0], [3], [2], [0, 1, 2]):
        got, want = cached.complete(cached[places], backbone), expected[str(places)]
        same = torch.testing.assert_close
        for tap, values in want.features.maps.items():
            same(got.features.maps[tap], values, atol=2e-5, rtol=1e-4)
        same(got.features.attention, want.features.attention, atol=1e-5, rtol=1e-4)
        for name, probe in want.features.probes.items():
            odds = got.features.probes[name](got.entities.text)
            same(odds, probe(want.entities.text), atol=1e-4, rtol=1e-4)
        assert torch.equal(got.entities.text, want.entities.text)
    assert sorted(asked) == [0, 1, 2, 3, 4, 5]


def test_samples_share_the_weights_of_keys(tiny_pipeline):
    """Also where they are copied, because the features are float32 and the weights are not."""
    backbone = UNetBackbone(
        tiny_pipeline, ["mid_block"], steps=2, probes=("mid_block",), dtype="bfloat16"
    )
    sample, cache = backbone.sample([request(0, "a photo of a key", "key")]), FeatureCache()

    def make(places):
        latents = sample.latents.repeat(len(places), 1, 1, 1, 1)
        return backbone.features(latents, sample.timesteps, sample.requests * len(places))

    for positions in ([0, 1], [2]):
        cache.get(positions, 1, make)
    keys = {probe.keys for kept in cache._kept.values() for probe in kept.probes.values()}
    assert len(cache._kept) == 3 and len(keys) == 1
    backbone.to("cpu")  # moved, maybe: the weights are copied once more
    cache.get([3], 1, make)
    assert keys.isdisjoint(probe.keys for probe in cache._kept[3].probes.values())
