"""Multimodal transformers: joint attention by hand, what is refused."""

from __future__ import annotations

import families
import pytest
import torch
from torch.nn.functional import interpolate

from ovseg.backbones.mmdit import MMDiTBackbone
from ovseg.structures import Entity, Request

PROMPT = "a photo of a house"
REQUEST = Request(0, 7, PROMPT, (Entity(1, "house", (13, 18)),))


@pytest.fixture(scope="module", params=["sd3", "flux"])
def backbone(request, tmp_path_factory):
    folder = families.save(getattr(families, request.param), tmp_path_factory.mktemp("model"))
    loaded = MMDiTBackbone(
        folder,
        ["transformer_blocks.0"],
        steps=2,
        guidance_scale=1.0,
        image_size=64,
        attention=("transformer_blocks.1",),
    )
    loaded.load()
    return loaded


def rotate(x, angles):
    """Turn pairs of neighbouring channels of ``(B, T, heads, D)`` by ``(T, D)`` angles."""
    cos, sin = (part[None, :, None] for part in angles)
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cos + turned * sin


@torch.no_grad()
def test_joint_attention_is_the_softmax_over_image_and_text(backbone):
    attn = backbone.denoiser.transformer_blocks[1].attn
    seen, angles = {}, []
    names = ("to_q", "to_k", "add_k_proj")
    hooks = [
        getattr(attn, name).register_forward_hook(
            lambda module, args, out, name=name: seen.setdefault(name, out)
        )
        for name in names
    ]
    if backbone.config.flux:
        network = backbone.denoiser
        hooks.append(network.pos_embed.register_forward_hook(lambda m, a, out: angles.append(out)))
    requests = [REQUEST, REQUEST._replace(seed=8)]
    latents = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = backbone.features(latents, backbone.timesteps, requests).attention
    for hook in hooks:
        hook.remove()

    heads = attn.heads
    query, key, words = (seen[name].unflatten(2, (heads, -1)) for name in names)
    query, key, words = attn.norm_q(query), attn.norm_k(key), attn.norm_added_k(words)
    count = words.shape[1]
    both = torch.cat([words, key], dim=1)
    if angles:
        cos, sin = angles[0]
        both = rotate(both, (cos, sin))
        query = rotate(query, (cos[count:], sin[count:]))
    scores = torch.einsum("bnhd,bmhd->bhnm", query, both) / query.shape[3] ** 0.5
    weights = scores.softmax(dim=3).mean(dim=1)[:, :, :count]  # (B, image tokens, words)
    (places,) = backbone.text.positions(REQUEST)
    expected = weights[:, :, places].mean(dim=2).unflatten(1, (8, 8))[:, None]
    expected = interpolate(expected, size=16, mode="bilinear")
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_timesteps_are_rounded_for_flux_alone(backbone):
    """As diffusers' own pipelines do; 818.18 is 820 in bfloat16."""
    lower = MMDiTBackbone(
        backbone.files.model, ["transformer_blocks.0"], image_size=64, dtype="bfloat16"
    )
    lower.load()
    told = []
    lower.denoiser.register_forward_pre_hook(
        lambda module, args, given: told.append(given["timestep"].double().tolist()),
        with_kwargs=True,
    )
    latents = torch.zeros(1, 1, 4, 16, 16)
    lower.features(latents, torch.tensor([818.18]), [REQUEST._replace(entities=())])
    flux = backbone.config.flux
    expected = torch.tensor(820.0, dtype=torch.bfloat16) / 1000 if flux else torch.tensor(818.18)
    assert told == [[expected.double().item()]]


@pytest.mark.parametrize("kind", ["EulerDiscrete", "FlowMatchHeunDiscrete"])
def test_schedulers_that_do_not_fit_flux_are_refused(kind, backbone):
    chosen = {"class_path": f"diffusers.{kind}Scheduler"}
    other = MMDiTBackbone(
        backbone.files.model, ["transformer_blocks.0"], image_size=64, scheduler=chosen
    )
    if not backbone.config.flux:
        assert len(other.timesteps) == 1
        return
    with pytest.raises(ValueError, match=r"Scheduler does not fit this model \(set_timesteps: "):
        other.timesteps  # noqa: B018


def test_a_prompt_is_judged_by_the_encoder_that_is_told_most(backbone):
    """CLIP takes 32 tokens here; T5 is told the rest, and refuses what it cannot take."""
    names = {"sd3": "text_encoder_3", "flux": "text_encoder_2"}
    t5 = names["flux" if backbone.config.flux else "sd3"]
    backbone.text.tokenizers[t5].model_max_length = 128
    room = backbone.text.room(t5)
    assert room == (128 if backbone.config.flux else 256)
    assert backbone.text.room("text_encoder") == 32
    long = REQUEST._replace(prompt=PROMPT + " and a house" * 12)
    backbone.text.check(long)
    with pytest.raises(ValueError, match=f"the prompt has .* tokens, {room} fit: .*a house"):
        backbone.text.check(REQUEST._replace(prompt=PROMPT + " and a house" * 90))
    with pytest.raises(ValueError, match="the negative prompt has"):
        backbone.text.check(REQUEST._replace(negative_prompt="a house " * 300))


def test_taps_and_attention_that_do_not_exist(backbone):
    folder = backbone.files.model
    with pytest.raises(ValueError, match="no block 'mid_block' to tap.*transformer_blocks.0"):
        MMDiTBackbone(folder, ["mid_block"], image_size=64).feature_spec  # noqa: B018
    wrong = MMDiTBackbone(
        folder, ["transformer_blocks.0"], image_size=64, attention=("single_transformer_blocks.0",)
    )
    with pytest.raises(ValueError, match="no joint attention in 'single.*transformer_blocks.0"):
        wrong.load()
    with pytest.raises(ValueError, match="image_size must be a positive multiple of 8, got 60"):
        MMDiTBackbone(folder, ["transformer_blocks.0"], image_size=60).image_size  # noqa: B018


def test_digest_and_description(backbone):
    facts = backbone.describe()
    again = MMDiTBackbone(**facts["init_args"])
    assert again.digest == facts["digest"] and again.latents_digest == backbone.latents_digest
    assert facts["class_path"] == "ovseg.backbones.mmdit.MMDiTBackbone"
    assert facts["scheduler"] == "FlowMatchEulerDiscreteScheduler"
