"""Precision, offloading, tiling and compiling change where and how, not what."""

from __future__ import annotations

import json
import platform
import shutil
from contextlib import contextmanager
from pathlib import Path

import families
import pytest
import torch

from ovseg.backbones import configured
from ovseg.backbones.mmdit import MMDiTBackbone
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


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_probes_do_not_break_the_graph_of_what_is_compiled(expected, tiny_pipeline):
    whole = {"backend": "eager", "fullgraph": True}
    backbone = UNetBackbone(tiny_pipeline, TAPS, steps=2, probes=("mid_block",), compile=whole)
    sample = backbone.sample(REQUESTS)
    for name, probe in expected.features.probes.items():
        found = sample.features.probes[name]
        torch.testing.assert_close(found.queries, probe.queries, atol=1e-4, rtol=1e-4)
        assert torch.equal(found.keys, probe.keys)


FAR = torch.device("cpu:0")
"""Main memory under another name: a pretended accelerator, which computes as well."""


class Watched:
    """Follow which parts of an offloaded backbone are on the pretended accelerator."""

    def __init__(self, kind, folder, taps, monkeypatch, **options) -> None:
        monkeypatch.setattr(kind, "device", FAR)
        self.backbone = kind(folder, taps, steps=2, offload=True, **options)
        self.backbone.load()
        self.there, self.seen, self.target = set(), set(), FAR
        parts = {"denoiser": self.backbone.denoiser, "vae": self.backbone.vae}
        for name, part in {**parts, **self.backbone.text.encoders}.items():
            self._follow(name, part)

    def _follow(self, name, part) -> None:
        move = part.to

        def to(device):
            (self.there.add if str(device) == str(self.target) else self.there.discard)(name)
            self.seen.add(frozenset(self.there))
            return move(device)

        part.to = to

    @contextmanager
    def using(self, *parts):
        """Check that these parts are there, one at a time."""
        before, self.seen = set(self.there), set()
        yield
        assert all(len(there) <= 1 for there in self.seen)
        assert set().union(*self.seen) | (before & set(parts)) == set(parts)


@pytest.mark.parametrize("family", ["tiny", "flux"])
def test_offloaded_parts_take_turns(family, tiny_pipeline, tmp_path, monkeypatch):
    if family == "tiny":
        watched = Watched(UNetBackbone, tiny_pipeline, TAPS, monkeypatch, inversion_steps=2, **READ)
        text = ["text_encoder"]
    else:
        folder = families.save(families.flux, tmp_path / "flux")
        blocks, options = ["transformer_blocks.0"], {"image_size": 64, "inversion_steps": 2}
        watched = Watched(MMDiTBackbone, folder, blocks, monkeypatch, **options)
        text = ["text_encoder", "text_encoder_2"]
    backbone = watched.backbone
    with watched.using(*text, "denoiser", "vae"):
        sample = backbone.sample(REQUESTS)
    assert len(watched.there) == 1  # the last one stays
    for _ in range(2):
        with watched.using(*text, "denoiser"):
            backbone.features(sample.latents, sample.timesteps, REQUESTS)
    with watched.using(*text, "denoiser", "vae"):
        backbone.encode_image(sample.images, REQUESTS)
    for number, embed in enumerate((backbone.embed, backbone.embed_tokens)):
        with watched.using(text[-1]):
            embed([Request(0, 0, "", (Entity(1, ("fish", "key")[number]),))])

    def fail(*_):
        raise MemoryError("no room")

    backbone.denoiser.register_forward_hook(fail)
    with watched.using(*text, "denoiser"), pytest.raises(MemoryError, match="no room"):
        backbone.features(sample.latents, sample.timesteps, REQUESTS)
    assert not watched.there  # it may be for want of memory


def test_offloaded_parts_follow_a_backbone_that_is_moved(tiny_pipeline, expected, monkeypatch):
    watched = Watched(UNetBackbone, tiny_pipeline, TAPS, monkeypatch)
    watched.target = torch.device("cpu:1")
    monkeypatch.setattr(UNetBackbone, "device", watched.target)
    watched.backbone.to("cpu")
    with watched.using("text_encoder", "denoiser", "vae"):
        sample = watched.backbone.sample(REQUESTS)
    assert torch.equal(sample.images, expected.images)


def test_a_cast_to_its_own_dtype_changes_nothing(tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "upcast")
    config = Path(folder) / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": True}))
    backbone = UNetBackbone(str(folder), TAPS, dtype="float16")
    backbone.load()
    for cast in (backbone.half, lambda: backbone.to("cpu", torch.float16)):
        cast()
        assert (backbone.denoiser.dtype, backbone.vae.dtype) == (torch.float16, torch.float32)
    assert backbone.to("meta").vae.device.type == backbone.device.type == "meta"
    assert backbone.vae.dtype == torch.float32
    with pytest.raises(
        ValueError, match="cannot be cast to float32: build it with dtype='float32'"
    ):
        backbone.float()


def test_names_are_embedded_in_float32_whatever_the_default_is(tiny_pipeline, expected):
    backbone = UNetBackbone(tiny_pipeline, TAPS, steps=2)
    torch.set_default_dtype(torch.bfloat16)
    try:
        text, tokens = backbone.embed(REQUESTS), backbone.embed_tokens(REQUESTS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert text.dtype == tokens.dtype == torch.float32
    assert torch.equal(text, expected.entities.text)


@pytest.mark.parametrize(
    ("machine", "units", "expected"),
    [
        ("x86_64", (False, False), False),  # oneDNN emulates it with AVX-512
        ("x86_64", (True, False), True),
        ("AMD64", (False, True), True),
        ("x86_64", None, False),
        ("aarch64", None, True),
    ],
)
def test_auto_is_bfloat16_where_the_processor_has_it(machine, units, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for name, has in zip(names, units or names, strict=True):
        monkeypatch.delattr(torch.cpu, name, raising=False)
        if units:
            monkeypatch.setattr(torch.cpu, name, lambda has=has: has, raising=False)
    assert configured.computes_in_bfloat16() is expected
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not configured.computes_in_bfloat16()


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
