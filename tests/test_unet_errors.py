"""ovseg.backbones.unet: what it refuses, and in which words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import families
import pytest
import torch
from test_unet import REQUESTS, TAPS, backbone  # noqa: F401 - a fixture
from toy_data import request

from ovseg.backbones.files import PipelineFiles
from ovseg.backbones.mmdit import MMDiTBackbone
from ovseg.backbones.unet import UNetBackbone
from ovseg.structures import Entity, Request


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1 and inversion_steps at least 0, got 0 and 0"),
        ({"taps": []}, "taps must name at least one"),
        ({"tap_steps": (0,)}, "tap_steps must be different numbers from 1"),
        ({"tap_steps": (1, 1)}, "tap_steps must be different numbers"),
        ({"dtype": "int8"}, "dtype must be one of float32"),
        ({"template": "a photo"}, "must contain {name} exactly once"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        UNetBackbone(**{"model": "clipart", "taps": TAPS} | changes)


def test_what_only_the_model_can_refuse(tiny_pipeline):
    with pytest.raises(ValueError, match="no block 'down_blocks.7'.*it has conv_in, down_blocks.0"):
        UNetBackbone(tiny_pipeline, ["down_blocks.7"]).load()
    with pytest.raises(ValueError, match="'time_embedding' is no feature map"):
        UNetBackbone(tiny_pipeline, ["time_embedding"]).feature_spec  # noqa: B018
    with pytest.raises(ValueError, match="tap_steps must be within 1..4"):
        UNetBackbone(tiny_pipeline, TAPS, steps=4, tap_steps=(5,)).timesteps  # noqa: B018
    with pytest.raises(ValueError, match="multiple of 4, got 30"):
        UNetBackbone(tiny_pipeline, TAPS, image_size=30).feature_spec  # noqa: B018
    with pytest.raises(ValueError, match="no cross-attention in 'conv_in'.*down_blocks.0.att"):
        UNetBackbone(tiny_pipeline, TAPS, attention=("conv_in",)).load()


@pytest.mark.parametrize(
    ("kind", "taps", "message"),
    [
        (UNetBackbone, TAPS, "no cross-attention in 'mid_blok'; choose among down_blocks"),
        (MMDiTBackbone, ["transformer_blocks.0"], "no joint attention in 'mid_blok'; choose among"),
    ],
)
def test_misnamed_attention_is_told_before_weights_are_read(
    kind, taps, message, tiny_pipeline, tmp_path, monkeypatch
):
    joint = kind is MMDiTBackbone
    folder = families.save(families.schnell, tmp_path / "m") if joint else tiny_pipeline
    named = kind(folder, taps, image_size=64, attention=("mid_blok",))
    monkeypatch.setattr(PipelineFiles, "load", lambda self, part, *dtype: pytest.fail(part))
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            named.load()
    assert list(named.modules()) == [named]  # nothing is left behind


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "unet",
            {"in_channels": 9},
            "takes 9 channels, its latents have 4: it paints or edits a given image; UNetBackbone",
        ),
        (
            "vae",
            {"_class_name": "AutoencoderTiny", "block_out_channels": None},
            "is of class AutoencoderTiny, not AutoencoderKL: choose a model with one",
        ),
    ],
)
def test_pipelines_of_another_kind(part, changes, message, tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "other")
    path = Path(folder) / part / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    other = UNetBackbone(str(folder), TAPS)
    for ask in ("feature_spec", "image_size") if part == "vae" else ("feature_spec",):
        with pytest.raises(ValueError, match=message):
            getattr(other, ask)


def test_bad_requests(backbone):  # noqa: F811 - the fixture
    with pytest.raises(ValueError, match="at least one request"):
        backbone.sample([])
    with pytest.raises(ValueError, match=r"S = 2 timesteps, got \(3, 1, 4"):
        backbone.features(torch.zeros(3, 1, 4, 16, 16), backbone.timesteps, REQUESTS)
    with pytest.raises(ValueError, match=r"are \(4, 16, 16\) at an image_size of 64, got \(4, 8, "):
        backbone.features(torch.zeros(3, 2, 4, 8, 8), backbone.timesteps, REQUESTS)
    assert backbone.embed([]).shape == (0, 1, backbone.text_width)
    long = request(0, "a photo of " + "a very " * 20 + "big house", "house")
    with pytest.raises(ValueError, match="'house' is cut off"):
        backbone.sample([long])
    for long in ({"prompt": "big " * 40}, {"negative_prompt": "big " * 40}):
        with pytest.raises(ValueError, match="prompt has .* tokens, 32 fit: .*; shorten it"):
            backbone.sample([REQUESTS[0]._replace(entities=(), **long)])
    with pytest.raises(ValueError, match="the prompt is empty"):
        backbone.sample([Request(0, 0, "", (Entity(1, "house"),))])
    assert backbone.sample([Request(0, 0, "")]).images.shape == (1, 3, 64, 64)  # unconditional
    twice = Request(0, 0, "a key", (Entity(1, "key"), Entity(2, "key")))
    for call in (backbone.sample, backbone.embed):
        with pytest.raises(ValueError, match=r"names must be .*, got \['key', 'key'\]"):
            call([twice])
    strange = Request(0, 0, "a key", (Entity(1, "key <|endoftext|>", (-1, -1)),))
    with pytest.raises(ValueError, match="no tokens for the name 'key <|endoftext|>'"):
        backbone.embed([strange])
