"""Precision, offloading, tiling and compiling change where and how, not what."""

from __future__ import annotations

import pytest
import torch

from ovseg.backbones.unet import UNetBackbone
from ovseg.structures import Entity, Request

TAPS = ["conv_in", "mid_block", "up_blocks.1.attentions.0"]
REQUESTS = [Request(i, i, "a photo of a house", (Entity(1, "house", (13, 18)),)) for i in range(2)]
READ = {"attention": ("mid_block",), "probes": ("mid_block",)}


@pytest.fixture(scope="module")
def expected(tiny_pipeline):
    return UNetBackbone(tiny_pipeline, TAPS, steps=2, **READ).sample(REQUESTS)


@pytest.mark.parametrize(
    "options",
    [{"compile": {"backend": "eager"}}, {"offload": True}, {"vae_tiling": True}],
    ids=["compile", "offload", "vae_tiling"],
)
# torch warns of what it compiles in diffusers
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_features_and_images_are_the_same(options, expected, tiny_pipeline):
    backbone = UNetBackbone(tiny_pipeline, TAPS, steps=2, **READ, **options)
    sample = backbone.to("cpu").sample(REQUESTS)
    assert (sample.images.int() - expected.images.int()).abs().max() <= 1
    for tap, maps in expected.features.maps.items():
        torch.testing.assert_close(sample.features.maps[tap], maps, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        sample.features.attention, expected.features.attention, atol=1e-5, rtol=1e-4
    )
    again = backbone.features(sample.latents, sample.timesteps, REQUESTS)
    torch.testing.assert_close(
        again.maps["mid_block"], expected.features.maps["mid_block"], atol=1e-4, rtol=1e-4
    )


def draws_the_same_noise_in_lower_precision() -> bool:
    """Whether torch does, as it has not always done: diffusers' pipelines draw in their dtype."""
    full, lower = (
        torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=dtype).float()
        for dtype in (torch.float32, torch.bfloat16)
    )
    return torch.allclose(full, lower, atol=0.05)


@pytest.mark.skipif(
    not draws_the_same_noise_in_lower_precision(),
    reason="this torch draws other noise in bfloat16 than in float32",
)
@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_lower_precision_is_close(dtype, expected, tiny_pipeline):
    backbone = UNetBackbone(tiny_pipeline, TAPS, steps=2, dtype=dtype, **READ)
    sample = backbone.sample(REQUESTS)
    assert (sample.images.float() - expected.images.float()).abs().mean() < 10
    assert sample.latents.dtype == sample.entities.text.dtype == torch.float32
    assert all(maps.dtype == torch.float32 for maps in sample.features.maps.values())
    assert backbone.describe()["dtype"] in ("bfloat16", "float32")


def test_the_licence_of_the_configuration_travels(tiny_pipeline):
    assert UNetBackbone(tiny_pipeline, TAPS).describe()["licence"] is None
    named = UNetBackbone(tiny_pipeline, TAPS, licence="openrail++")
    assert named.describe()["licence"] == "openrail++"
