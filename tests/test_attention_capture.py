"""ovseg.backbones.attention: cross-attention read without disturbing it."""

from __future__ import annotations

import weakref
from functools import partial

import pytest
import torch
from geometries import geometry
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_data import request

from ovseg.backbones.attention import AttentionCapture, ProbeRecorder
from ovseg.backbones.files import PipelineFiles
from ovseg.backbones.unet import UNetBackbone, UNetConfig


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


@torch.no_grad()
def test_sampling_averages_over_all_its_calls_as_daam_does(tiny_pipeline):
    from diffusers import StableDiffusionPipeline

    layers = [
        f"{block}.attentions.0.transformer_blocks.0.attn2"
        for block in ("down_blocks.1", "mid_block")
    ]
    requests = [
        request(0, "a photo of a house and a fish", "house", "fish"),
        request(1, "a photo of a key", "key"),
    ]
    backbone = UNetBackbone(tiny_pipeline, ["conv_in"], steps=5, attention=layers)
    found = backbone.sample(requests).features.attention

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    steps: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name, layer, args, kwargs):
        hidden, text = args[0][2:], kwargs["encoder_hidden_states"][2:]  # the conditional half
        query, key = layer.to_q(hidden), layer.to_k(text)
        width, probabilities = query.shape[2] // layer.heads, 0.0
        for head in range(layer.heads):
            own = slice(head * width, (head + 1) * width)
            scores = query[..., own] @ key[..., own].mT / width**0.5
            probabilities += scores.softmax(dim=2) / layer.heads
        steps[name].append(probabilities)  # (2, h * w, tokens)

    for name in layers:
        pipe.unet.get_submodule(name).register_forward_pre_hook(
            partial(keep, name), with_kwargs=True
        )
    generators = [torch.Generator().manual_seed(r.seed) for r in requests]
    pipe([r.prompt for r in requests], num_inference_steps=5, generator=generators)

    def mean_over(chosen: slice, row: int, name: str) -> Tensor:
        ids, own = (pipe.tokenizer(text)["input_ids"] for text in (requests[row].prompt, name))
        own = own[1:-1]
        (start,) = (i for i in range(len(ids)) if ids[i : i + len(own)] == own)
        total = torch.zeros(16, 16)
        for calls in steps.values():
            for call in calls[chosen]:
                of_name = call[row, :, start : start + len(own)].mean(dim=1)
                side = int(len(of_name) ** 0.5)
                of_name = of_name.reshape(1, 1, side, side)
                total += interpolate(of_name, size=16, mode="bilinear")[0, 0]
        return total / (len(steps) * len(steps[layers[0]][chosen]))

    assert [len(calls) for calls in steps.values()] == [5, 5]
    for row, column, name in ((0, 0, "house"), (0, 1, "fish"), (1, 0, "key")):
        expected = mean_over(slice(None), row, name)
        torch.testing.assert_close(found[row, column], expected, atol=1e-6, rtol=1e-4)
        assert not torch.allclose(mean_over(slice(4, None), row, name), expected, rtol=1e-3)


class Meter(TorchDispatchMode):
    """Count the bytes of tensors that were made while it was on and are still alive."""

    held = peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = {s._cdata for s in storages((args, kwargs))}
        for storage in storages(made):
            if storage._cdata not in given:  # no view, nothing in place
                self.count(storage.nbytes())
                weakref.finalize(storage, self.count, -storage.nbytes())
        return made

    def count(self, more: int) -> None:
        self.held += more
        self.peak = max(self.peak, self.held)


def storages(tree) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, Tensor)]


def test_the_meter_counts_what_is_alive():
    meter, before = Meter(), torch.ones(8)
    with meter:
        view, kept = before[2:], before * 2  # 32 bytes
        (before + kept).sum()  # 32, 4
        before.add_(1)
    assert (meter.held, meter.peak) == (32, 68)
    del kept, view
    assert meter.held == 0


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_at_the_size_of_stable_diffusion_1_5(dtype, monkeypatch):
    network, _ = geometry("sd15").meta()
    network.to(dtype)
    batch, names, tokens, side = 2, 4, 77, 64
    capture = AttentionCapture(network, ["down_blocks", "mid_block", "up_blocks"])  # all 16 layers
    meter, add, held = Meter(), capture.add, []

    def metered(*args, **more):
        with meter:
            add(*args, **more)

    monkeypatch.setattr(capture, "add", metered)
    inputs = (
        torch.empty(2 * batch, 4, side, side, dtype=dtype, device="meta"),  # under guidance
        torch.empty(1, device="meta"),
        torch.empty(2 * batch, tokens, 768, dtype=dtype, device="meta"),
    )
    with capture.watching([[[5, 6]] * names] * batch, size=side):
        for _ in range(3):
            network(*inputs)
            held.append(meter.held)
        assert capture._count == 3 * 16
    sums, weights = batch * names * side**2 * 4, batch * names * tokens * 4
    assert held == [sums + weights] * 3  # float32, whatever the number of calls
    assert meter.peak < batch * 64 * 2**20


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


@torch.no_grad()
def test_nothing_of_a_batch_is_kept_once_it_was_collected(unet):
    capture, recorder = AttentionCapture(unet, ["mid_block"]), ProbeRecorder(unet, ["mid_block"])
    latents, time, text = inputs(2)
    with recorder.recording(2) as probes, capture.watching([[[3]], [[2]]], size=16):
        unet(latents, time, text)
    (probe,) = probes.values()
    kept = weakref.ref(probe.queries), weakref.ref(capture._sum)
    capture.mean()
    with pytest.raises(RuntimeError, match="no cross-attention arrived"):
        capture.mean()
    del probes, probe
    assert [tensor() for tensor in kept] == [None, None]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_weights_of_keys_are_copied_once_until_they_change(unet, dtype):
    recorder = ProbeRecorder(unet.to(dtype), ["mid_block"])
    latents, time, text = inputs(2)

    def keys() -> Tensor:
        with recorder.recording(2) as probes:
            unet(latents.to(unet.dtype), time, text.to(unet.dtype))
        (probe,) = probes.values()
        assert probe.keys.dtype == torch.float32
        return probe.keys

    (layer,) = (m for n, m in unet.mid_block.named_modules() if n.endswith("attn2"))
    first = keys()
    assert keys() is first and torch.equal(first.flatten(0, 1), layer.to_k.weight.float())
    recorder.forget()
    with torch.inference_mode():  # as in a validation; a training may read them after it
        again = keys()
    assert not again.is_inference() and torch.equal(again, first)
    layer.to_k.weight.mul_(2)  # other weights in the same place
    second = keys()
    assert second is not first and torch.equal(second.flatten(0, 1), layer.to_k.weight.float())
    layer.to_k.weight = torch.nn.Parameter(layer.to_k.weight * 2)
    third = keys()
    assert torch.equal(third, 2 * second) and keys() is third
    unet.to(torch.float64)
    assert keys() is not third
    recorder.forget()
    kept = weakref.ref(third)
    del third
    assert kept() is None


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
