"""Every family of models: our sampling against diffusers' own pipeline, features, masks."""

from __future__ import annotations

import families
import numpy as np
import pytest
import torch
from geometries import geometry
from toy_data import request

from ovseg.backbones.mmdit import MMDiTBackbone, pack, unpack
from ovseg.backbones.unet import UNetBackbone
from ovseg.grounders.attention import AttentionGrounder
from ovseg.grounders.fusion import FusionGrounder
from ovseg.grounders.probe import ProbeGrounder
from ovseg.structures import Entity, Request

U_TAPS = ["conv_in", "down_blocks.1.attentions.0", "mid_block", "up_blocks.0.attentions.1"]
J_TAPS = ["transformer_blocks.0", "transformer_blocks.1"]
U_ATTENTION = {"attention": ("up_blocks.0",), "probes": ("down_blocks.1", "up_blocks.0")}
FAMILIES = {
    "sd2": (UNetBackbone, families.sd2, U_TAPS, {"guidance_scale": 3.0, **U_ATTENTION}),
    "sdxl": (UNetBackbone, families.sdxl, U_TAPS, {"guidance_scale": 3.0, **U_ATTENTION}),
    "turbo": (UNetBackbone, families.sdxl, U_TAPS, {"guidance_scale": 0.0, **U_ATTENTION}),
    "lcm": (UNetBackbone, families.lcm, U_TAPS, {"guidance_scale": 8.0, **U_ATTENTION}),
    "sd3": (
        MMDiTBackbone,
        families.sd3,
        J_TAPS,
        {"guidance_scale": 4.0, "attention": ("transformer_blocks.1",)},
    ),
    "sd3_without_t5": (
        MMDiTBackbone,
        families.sd3_without_t5,
        J_TAPS,
        {"guidance_scale": 4.0, "attention": ("transformer_blocks.1",)},
    ),
    "flux": (
        MMDiTBackbone,
        families.flux,
        [*J_TAPS, "single_transformer_blocks.1"],
        {"guidance_scale": 3.5, "image_size": 64, "attention": tuple(J_TAPS)},
    ),
    "schnell": (
        MMDiTBackbone,
        families.schnell,
        J_TAPS,
        {"guidance_scale": 0.0, "image_size": 64, "attention": ("transformer_blocks.0",)},
    ),
}
ONE, PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
POOLED = {"sdxl": (ONE, PROJECTED), "turbo": (ONE, PROJECTED)}
POOLED |= dict.fromkeys(("sd3", "sd3_without_t5"), (PROJECTED, PROJECTED))
POOLED |= dict.fromkeys(("sd2", "lcm", "flux", "schnell"), (ONE,))
UNGUIDED = ("turbo", "lcm", "flux", "schnell")


REQUESTS = [
    request(0, "a photo of a house and a fish", "house", "fish"),
    request(1, "a photo of a key", "key"),
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """Return name, folder, and a backbone of three steps."""
    kind, make, taps, options = FAMILIES[request.param]
    folder = families.save(make, tmp_path_factory.mktemp(request.param))
    return request.param, folder, kind(folder, taps, steps=3, tap_steps=(1, 2), **options)


@pytest.fixture(scope="module")
def sample(family):
    return family[2].sample(REQUESTS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
# EulerDiscreteScheduler hands tensors to numpy in a way that numpy 2 deprecates
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_images_are_those_of_diffusers_own_pipeline(dtype, family, sample):
    from diffusers import DiffusionPipeline

    name, folder, backbone = family
    if dtype != "float32":
        taps, options = FAMILIES[name][2:]
        backbone = type(backbone)(folder, taps, steps=3, dtype=dtype, **options)
        sample = backbone.sample(REQUESTS)
    missing = {"text_encoder_3": None, "tokenizer_3": None} if name == "sd3_without_t5" else {}
    pipe = DiffusionPipeline.from_pretrained(folder, **missing).to(backbone.dtype)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(r.seed) for r in REQUESTS]
    latents = backbone._noise(generators)
    told = {"latents": pack(latents) if name in ("flux", "schnell") else latents}
    if name in ("sd3", "sd3_without_t5"):
        told["max_sequence_length"] = 256
    elif name in ("flux", "schnell"):
        told["max_sequence_length"] = backbone.text.tokenizer.model_max_length
    images = pipe(
        [r.prompt for r in REQUESTS],
        num_inference_steps=3,
        guidance_scale=backbone.guidance_scale,
        height=64,
        width=64,
        generator=generators,
        output_type="np",
        **told,
    ).images
    expected = torch.from_numpy((images * 255).round().astype(np.int64)).permute(0, 3, 1, 2)
    assert (sample.images.long() - expected).abs().max() <= 1
    assert sample.images.float().std() > 1  # not blank


def test_stored_latents_give_the_features_again(family, sample):
    backbone = family[2]
    spec = backbone.feature_spec
    again = backbone.features(sample.latents, sample.timesteps, REQUESTS)
    assert list(again.maps) == list(spec.taps)
    for tap, maps in again.maps.items():
        side = backbone.image_size // spec.taps[tap].stride
        assert maps.shape == (2, 2, 1, spec.taps[tap].channels, side, side)
        torch.testing.assert_close(maps, sample.features.maps[tap], atol=1e-4, rtol=1e-4)
    attention = sample.features.attention
    assert attention.shape == (2, 2, 16, 16) and attention.min() >= 0
    assert attention[0].std(dim=(1, 2)).min() > 0 and not attention[1, 1].any()


def test_a_sample_depends_on_its_own_seed_alone(family, sample):
    alone = family[2].sample(REQUESTS[1:])
    assert (alone.images.int() - sample.images[1:].int()).abs().max() <= 1
    torch.testing.assert_close(
        alone.features.attention[0, 0], sample.features.attention[1, 0], atol=1e-5, rtol=1e-4
    )


def test_every_grounder_learns_on_it(family, sample):
    backbone = family[2]
    spec, width = backbone.feature_spec, backbone.text_width
    strides = len({tap.stride for tap in spec.taps.values()})
    sizes = {"patch": 2, "layers": 1, "hidden": 16, "heads": 2, "ffn": 16}
    probes = bool(spec.probes)
    for grounder in (
        FusionGrounder(spec, width, widths=(4,) * strides, **sizes),
        ProbeGrounder(spec, width, widths=(4,) * strides, hidden=8, probes=probes),
        AttentionGrounder(spec, width),
    ):
        logits = grounder(sample.features, sample.entities)
        assert logits.shape[:2] == (2, 2) and logits.isfinite().all()
        if any(p.requires_grad for p in grounder.parameters()):
            logits.mean().backward()
            presence = ("judge", "rivals")
            grads = [p.grad for n, p in grounder.named_parameters() if not n.startswith(presence)]
            assert all(grad is not None and grad.isfinite().all() for grad in grads)


def test_names_have_embeddings_of_their_own(family):
    backbone = family[2]
    text = backbone.embed(REQUESTS)
    assert text.shape == (2, 2, backbone.text_width)
    assert not text[1, 1].any() and (text[0, 0] - text[0, 1]).abs().max() > 1e-2


def test_pooled_names_are_the_outputs_of_transformers(family):
    import transformers

    name, folder, backbone = family
    pooled = type(backbone)(folder, FAMILIES[name][2], names_in="pooled", **FAMILIES[name][3])
    width = pooled.text_width
    assert not hasattr(pooled, "text")  # no weights were needed for that
    sentence, expected = "a photograph of a fish", []
    for place, kind in enumerate(POOLED[name]):
        part = f"text_encoder_{place + 1}" if place else "text_encoder"
        encoder = getattr(transformers, kind).from_pretrained(folder, subfolder=part)
        words = backbone.text.tokenizers[part](sentence, padding="max_length", return_tensors="pt")
        output = encoder(words["input_ids"])
        one = output.text_embeds if kind.endswith("Projection") else output.pooler_output
        expected.append(one[0])
    expected = torch.cat(expected)
    assert len(expected) == width
    torch.testing.assert_close(pooled.embed(REQUESTS)[0, 1], expected, atol=1e-6, rtol=1e-5)
    assert pooled.digest != backbone.digest
    long = "fish " * 40
    with pytest.raises(ValueError, match="is cut off"):
        pooled.embed([Request(0, 0, "", (Entity(1, long.strip()),))])


def test_photographs_are_encoded(family, sample):
    latents = family[2].encode_image(sample.images, REQUESTS)
    assert latents.shape == sample.latents.shape and latents.isfinite().all()


def test_a_model_without_an_unconditional_branch_has_one(family):
    name, folder, backbone = family
    taps, options = FAMILIES[name][2:]
    both = type(backbone)(folder, taps, both_branches=True, **options)
    if backbone.config.embeds_guidance:
        with pytest.raises(ValueError, match="no unconditional branch: set both_branches to false"):
            both.feature_spec  # noqa: B018
    else:
        assert both.feature_spec.branches == 2
    backbone.load()
    calls = []
    denoise = backbone.denoise
    backbone._reader._denoise = lambda x, t, c: calls.append(len(x)) or denoise(x, t, c)
    backbone.sample(REQUESTS)
    backbone._reader._denoise = denoise
    assert calls == [2 if name in UNGUIDED else 4] * 3


def test_a_guidance_that_the_denoiser_is_told_decides_the_features(family, sample):
    name, folder, backbone = family
    taps, options = FAMILIES[name][2:]
    options = options | {"guidance_scale": 6.0}
    other = type(backbone)(folder, taps, steps=3, tap_steps=(1, 2), **options)
    told = name in ("lcm", "flux")
    assert (other.digest != backbone.digest) == told
    assert other.latents_digest == backbone.latents_digest
    if told:
        again = other.features(sample.latents, sample.timesteps, REQUESTS)
        assert not torch.allclose(again.maps[taps[1]], sample.features.maps[taps[1]], atol=1e-3)


def test_packing_is_undone():
    latents = torch.randn(2, 3, 6, 6)
    tokens = pack(latents)
    assert tokens.shape == (2, 9, 12) and torch.equal(unpack(tokens, 6), latents)
    assert torch.equal(tokens[0, 1], latents[0, :, :2, 2:4].flatten())


@pytest.mark.parametrize(
    ("name", "taps", "expected", "width"),
    [
        (
            "sdxl",
            ["down_blocks.0.resnets.0", "down_blocks.1.attentions.1", "mid_block", "up_blocks.2"],
            {(320, 8), (640, 16), (1280, 32), (320, 8)},
            2048,
        ),
        ("sd3", ["transformer_blocks.0", "transformer_blocks.23"], {(1536, 16)}, 2048),
        ("flux", ["transformer_blocks.18", "single_transformer_blocks.37"], {(3072, 16)}, 4096),
    ],
)
def test_real_geometry_by_shapes_alone(name, taps, expected, width):
    config = geometry(name)
    found, _ = config.measure(taps)
    assert config.image_size == 1024 and config.latent_size == 128
    assert {(tap.channels, tap.stride) for tap in found.values()} == expected
    assert config.text_width == width
    assert config.pooled_width == {"sdxl": 768 + 1280, "sd3": 768 + 1280, "flux": 768}[name]
