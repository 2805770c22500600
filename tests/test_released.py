"""ovseg.grounders.released, against the released arithmetic.

`released_logits` is a plain transcription of what the authors' module computes, for one image: it
shares no code with `FusionGrounder`.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from geometries import geometry

from ovseg.backbones.taps import SD1_TAPS
from ovseg.grounders.fusion import FusionGrounder
from ovseg.grounders.released import convert
from ovseg.structures import Entities, Features, FeatureSpec

CHANNELS = {"low": 14, "mid": 10, "high": 8, "highest": 6}
SIZES = {"low": 2, "mid": 4, "high": 8, "highest": 16}
WIDTHS = {"low": 3, "mid": 4, "high": 5, "highest": 6}
TEXT, HIDDEN, HEADS, FFN, LAYERS, PATCH = 7, 16, 4, 24, 2, 4


def spec() -> FeatureSpec:
    """Two taps per level, with both branches."""
    taps = {}
    for level in CHANNELS:
        stride = 64 // SIZES[level]
        half = CHANNELS[level] // 2
        taps |= {f"{level}.a": (half - 1, stride), f"{level}.b": (half + 1, stride)}
    return FeatureSpec(taps, branches=2)


def random_release(
    channels=CHANNELS, widths=WIDTHS, text=TEXT, hidden=HIDDEN, ffn=FFN, layers=LAYERS, patch=PATCH
) -> dict[str, torch.Tensor]:
    """Draw a state dict with the released names; `channels` of one branch."""
    g = torch.Generator().manual_seed(5)

    def draw(*shape, scale=0.3):
        return torch.randn(*shape, generator=g) * scale

    state = {f"{n}_feature_conv.0.weight": draw(widths[n], 2 * channels[n], 1, 1) for n in widths}
    total = widths["low"]
    for level in ("mid", "high", "highest"):
        total += widths[level]
        block = f"{level}_feature_mix_conv"
        for n in (1, 2):
            state |= {
                f"{block}.conv{n}.weight": draw(total, total, 3, 3),
                f"{block}.conv{n}.bias": draw(total),
                f"{block}.conv{n}.u0": draw(1, total),
                f"{block}.conv{n}.sv0": draw(1),
                f"{block}.stored_mean{n}": draw(total),
                f"{block}.stored_var{n}": draw(total).abs() + 0.5,
            }
    for i in range(layers):
        layer = f"transfromer_decoder.layers.{i}"
        for attention in ("self_attn", "multihead_attn"):
            state[f"{layer}.{attention}.in_proj_weight"] = draw(3 * hidden, hidden)
            state[f"{layer}.{attention}.out_proj.weight"] = draw(hidden, hidden)
        state |= {
            f"{layer}.linear1.weight": draw(ffn, hidden),
            f"{layer}.linear1.bias": draw(ffn),
            f"{layer}.linear2.weight": draw(hidden, ffn),
            f"{layer}.linear2.bias": draw(hidden),
        }
        for n in (1, 2, 3):
            state[f"{layer}.norm{n}.weight"] = 1 + draw(hidden)
            state[f"{layer}.norm{n}.bias"] = draw(hidden)
    for i, width in enumerate((hidden, hidden, total)):
        state[f"mlp.layers.{i}.weight"] = draw(width, hidden)
        state[f"mlp.layers.{i}.bias"] = draw(width)
    state["to_k.weight"] = draw(hidden, total * patch**2)
    state["to_q.weight"] = draw(hidden, text)
    return state


def released_logits(s, maps, text, stored: bool, sizes=SIZES, image=64, layers=LAYERS, heads=HEADS):
    """Compute the released module's logits ``(names, image, image)`` of one image.

    `maps` are the 1 x (2 C) x h x w maps of each level, unconditional channels first.
    """

    def norm(x, block, n):
        mean, var = s[f"{block}.stored_mean{n}"], s[f"{block}.stored_var{n}"]
        if not stored:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        return (x - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-4).sqrt()

    def conv(x, name):
        w = s[f"{name}.weight"]
        flat = w.reshape(len(w), -1)
        v = F.normalize(s[f"{name}.u0"] @ flat, eps=1e-4)
        u = F.normalize(v @ flat.T, eps=1e-4)
        sigma = (v @ flat.T @ u.T).squeeze()
        return F.conv2d(x, w / sigma, s[f"{name}.bias"], padding=1)

    def block(x, level):
        name = f"{level}_feature_mix_conv"
        skip = norm(x, name, 1).clamp(min=0)  # rectified in place
        h = conv(skip, f"{name}.conv1")
        h = conv(norm(h, name, 2).clamp(min=0), f"{name}.conv2")
        return skip + h

    def up(x, size):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def project(level, size):
        resized = torch.cat([up(m, size) for m in maps[level]], dim=1)
        return F.conv2d(resized, s[f"{level}_feature_conv.0.weight"])

    x = project("low", sizes["mid"])
    x = block(torch.cat([up(x, sizes["high"]), project("mid", sizes["high"])], 1), "mid")
    x = block(torch.cat([up(x, sizes["highest"]), project("high", sizes["highest"])], 1), "high")
    x = block(torch.cat([x, project("highest", sizes["highest"])], 1), "highest")

    def attend(name, query, memory):
        parts = s[f"{name}.in_proj_weight"].chunk(3)
        q, k, v = query @ parts[0].T, memory @ parts[1].T, memory @ parts[2].T
        size = q.shape[1] // heads
        out = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            weights = (q[:, part] @ k[:, part].T / size**0.5).softmax(dim=-1)
            out.append(weights @ v[:, part])
        return torch.cat(out, 1) @ s[f"{name}.out_proj.weight"].T

    patches = F.unfold(x, PATCH, stride=PATCH)[0].T
    memory, q = patches @ s["to_k.weight"].T, text @ s["to_q.weight"].T
    for i in range(layers):
        layer = f"transfromer_decoder.layers.{i}"

        def normed(q, n, layer=layer):
            w, b = s[f"{layer}.norm{n}.weight"], s[f"{layer}.norm{n}.bias"]
            return F.layer_norm(q, w.shape, w, b)

        own = normed(q, 1)
        q = q + attend(f"{layer}.self_attn", own, own)
        q = q + attend(f"{layer}.multihead_attn", normed(q, 2), memory)
        h = F.linear(normed(q, 3), s[f"{layer}.linear1.weight"], s[f"{layer}.linear1.bias"])
        h = h.clamp(min=0)
        q = q + F.linear(h, s[f"{layer}.linear2.weight"], s[f"{layer}.linear2.bias"])
    for i in range(3):
        q = F.linear(q, s[f"mlp.layers.{i}.weight"], s[f"mlp.layers.{i}.bias"])
        q = q.clamp(min=0) if i < 2 else q
    return torch.einsum("chw,nc->nhw", up(x, image)[0], q)


def grounder(norm: str) -> FusionGrounder:
    sizes = {"widths": tuple(WIDTHS.values()), "patch": PATCH, "layers": LAYERS}
    return FusionGrounder(
        spec(), TEXT, **sizes, hidden=HIDDEN, heads=HEADS, ffn=FFN, norm=norm
    ).eval()


@pytest.mark.parametrize(("norm", "stored"), [("instance", False), ("batch", True)])
def test_the_converted_module_gives_the_released_modules_output(norm, stored):
    state, ours = random_release(), grounder(norm)
    ours.load_state_dict(convert({f"module.{k}": v for k, v in state.items()}, ours))
    g = torch.Generator().manual_seed(1)
    maps = {
        tap: torch.randn(2, 1, 2, t.channels, 64 // t.stride, 64 // t.stride, generator=g)
        for tap, t in spec().taps.items()
    }
    text = torch.randn(2, 3, TEXT, generator=g)
    valid = torch.ones(2, 3, dtype=torch.bool)
    with torch.no_grad():
        got = ours(Features(maps), Entities(text, valid.long(), valid))
        again = ours(Features(maps), Entities(text, valid.long(), valid))
    assert torch.equal(got, again)  # no power iteration goes on
    for image in range(2):
        levels = {  # per tap u0 c0, then u1 c1
            level: [maps[f"{level}.{t}"][image].flatten(1, 2) for t in "ab"] for level in CHANNELS
        }
        wanted = released_logits(state, levels, text[image], stored)
        assert wanted.std() > 0.1
        assert (got[image] - wanted).abs().max() < 1e-4 * max(1.0, wanted.abs().max())


@pytest.mark.slow
def test_the_same_at_the_size_of_the_paper():
    """The 25 maps of Stable Diffusion 1.x with both branches, and 18,796,560 parameters."""
    channels = {"low": 7680, "mid": 7040, "high": 4160, "highest": 2560}
    sizes = dict(zip(channels, (8, 16, 32, 64), strict=True))
    state = random_release(
        channels, dict(zip(channels, (16, 32, 64, 128), strict=True)), 768, 512, 2048, 3
    )
    state = {k: v / 10 if v.ndim == 2 or "feature_conv" in k else v for k, v in state.items()}
    taps, _ = geometry("sd15").measure(SD1_TAPS)
    ours = FusionGrounder(FeatureSpec(taps, branches=2), 768, norm="instance").eval()
    ours.load_state_dict(convert(state, ours))
    assert len(taps) == 25 and sum(p.numel() for p in ours.parameters()) == 18_796_560
    g = torch.Generator().manual_seed(2)
    maps = {
        tap: torch.randn(1, 1, 2, t.channels, 512 // t.stride, 512 // t.stride, generator=g)
        for tap, t in taps.items()
    }
    text, valid = torch.randn(1, 2, 768, generator=g), torch.ones(1, 2, dtype=torch.bool)
    levels = {
        level: [m[0].flatten(1, 2) for m in maps.values() if m.shape[-1] == size]
        for level, size in sizes.items()
    }
    with torch.no_grad():
        got = ours(Features(maps), Entities(text, valid.long(), valid))[0]
        wanted = released_logits(state, levels, text[0], False, sizes, 512, 3, 8)
    assert got.shape == wanted.shape == (2, 512, 512) and wanted.std() > 0.1
    assert (got - wanted).abs().max() < 1e-4 * max(1.0, wanted.abs().max())


def test_each_key_that_does_not_fit_is_named():
    state = random_release()
    del state["to_q.weight"]
    state["extra.bias"] = torch.zeros(1)
    state["mlp.layers.0.bias"] = torch.zeros(3)
    state["mid_feature_mix_conv.conv1.u0"] = torch.zeros(1, 2)
    with pytest.raises(ValueError) as error:
        convert(state, grounder("batch"))
    text = str(error.value)
    assert "to_q.weight is missing" in text and "extra.bias is unknown" in text
    assert "mlp.layers.0.bias is (3,), wanted (16,)" in text
    assert "mid_feature_mix_conv.conv1.u0 is (1, 2), wanted (1, 7)" in text


def test_a_grounder_of_other_groups_is_refused():
    taps = {tap: size for tap, size in spec().taps.items() if not tap.startswith("highest")}
    three = FusionGrounder(
        FeatureSpec(taps, branches=2), TEXT, widths=(3, 4, 5), hidden=HIDDEN, heads=HEADS, ffn=FFN
    )
    with pytest.raises(ValueError, match="reads taps of 4 strides, the grounder's have 3"):
        convert(random_release(), three)
