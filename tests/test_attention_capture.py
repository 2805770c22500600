"""ovseg.backbones.attention: cross-attention read without disturbing it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from ovseg.backbones.attention import AttentionCapture, ProbeRecorder
from ovseg.backbones.files import PipelineFiles
from ovseg.backbones.unet import UNetConfig


@pytest.fixture
def unet(tiny_pipeline):
    return PipelineFiles(tiny_pipeline).load("unet", torch.float32).eval()


def inputs(batch: int):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, 16, 16, generator=generator)
    return latents, torch.tensor(5), torch.randn(batch, 32, 32, generator=generator)


def watched(unet, name: str):
    """Return a cross-attention layer and the list of its queries and keys, filled by each call."""
    layer, seen = unet.get_submodule(name), []
    for projection in (layer.to_q, layer.to_k):
        projection.register_forward_hook(lambda m, a, out: seen.append(out))
    return layer, seen


@torch.no_grad()
def test_maps_are_the_softmax_over_tokens(unet):
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    layer, seen = watched(unet, name)
    latents, time, text = inputs(2)
    expected_output = unet(latents, time, text, return_dict=False)[0]
    query, key = (x.unflatten(2, (layer.heads, -1)) for x in seen[:2])
    capture = AttentionCapture(unet, ["down_blocks.1"])
    with capture.watching([[[3], [4, 6]], [[2]]], size=16):
        output = unet(latents, time, text, return_dict=False)[0]
    assert torch.equal(output, expected_output)  # the result is left alone

    scores = torch.einsum("bnhd,bthd->bhnt", query, key) / query.shape[-1] ** 0.5
    heads = scores.softmax(-1).mean(1).mT.unflatten(2, (8, 8))  # (B, T, 8, 8)
    expected = torch.zeros(2, 2, 8, 8)
    expected[0, 0], expected[0, 1] = heads[0, 3], (heads[0, 4] + heads[0, 6]) / 2
    expected[1, 0] = heads[1, 2]
    expected = interpolate(expected, size=16, mode="bilinear")
    torch.testing.assert_close(capture.mean(), expected, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_mean_over_calls_layers_and_the_conditional_half(unet):
    latents, time, text = inputs(4)
    capture = AttentionCapture(unet, ["down_blocks.0", "mid_block"])
    means = []
    for half in (slice(2, 4), slice(0, 2)):
        with capture.watching([[[3]], [[2]]], size=16):
            unet(latents[half], time, text[half], return_dict=False)
        means.append(capture.mean())
    with capture.watching([[[3]], [[2]]], size=16):  # doubled batches, as under guidance
        unet(latents, time, text, return_dict=False)
        order = [2, 3, 0, 1]
        unet(latents[order], time, text[order], return_dict=False)
    torch.testing.assert_close(capture.mean(), sum(means) / 2, atol=1e-6, rtol=1e-4)
    assert (means[0] - means[1]).abs().max() > 1e-4


def test_refusals(unet):
    with pytest.raises(ValueError, match="no cross-attention in 'up_blocks.0.resnets'.*mid_block"):
        AttentionCapture(unet, ["mid_block", "up_blocks.0.resnets"])
    capture = AttentionCapture(unet, ["mid_block"])
    with capture.watching([[]], size=16):
        pass
    with pytest.raises(RuntimeError, match="no cross-attention arrived"):
        capture.mean()


@torch.no_grad()
def test_a_probe_asked_for_a_token_of_the_prompt_gives_its_log_probability(unet):
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    layer, seen = watched(unet, name)
    latents, time, text = inputs(4)
    expected_output = unet(latents, time, text, return_dict=False)[0]
    query, key = (x[2:].unflatten(2, (layer.heads, -1)) for x in seen[:2])
    recorder = ProbeRecorder(unet, ["down_blocks.1"])
    with recorder.recording(2) as probes:  # two conditional samples behind two unconditional ones
        output = unet(latents, time, text, return_dict=False)[0]
    assert torch.equal(output, expected_output) and list(probes) == [name]
    unet(latents, time, text)  # nothing is kept outside
    asked = [3, 7, 3]
    odds = probes[name](text[2:, asked])
    assert odds.shape == (2, 1, 3, layer.heads, 8, 8)

    scores = torch.einsum("bphd,bthd->bhpt", query, key) / query.shape[-1] ** 0.5
    expected = scores.log_softmax(-1)[..., asked].permute(0, 3, 1, 2).unflatten(3, (8, 8))
    torch.testing.assert_close(odds[:, 0], expected, atol=1e-5, rtol=1e-4)


def test_probes_are_measured_without_weights_and_in_network_order(unet, tiny_pipeline):
    config = UNetConfig(PipelineFiles(tiny_pipeline))
    specs = config.measure(["mid_block"], ["up_blocks.1", "down_blocks.0"])[1]
    names = [n.split(".transformer")[0] for n in specs]
    assert names[0] == "down_blocks.0.attentions.0" and set(names[1:]) == {
        "up_blocks.1.attentions.0",
        "up_blocks.1.attentions.1",
    }
    assert [spec.stride for spec in specs.values()] == [4, 8, 8]
    assert {spec.channels for spec in specs.values()} == {unet.config.attention_head_dim}
    with pytest.raises(ValueError, match="no cross-attention in 'nowhere'"):
        config.measure(["mid_block"], ["nowhere"])
