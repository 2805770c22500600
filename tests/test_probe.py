"""ovseg.grounders.probe and .maps: what the mask of a name may depend on."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d, interpolate

from ovseg.backbones.unet import UNetBackbone
from ovseg.grounders.maps import MultiscaleProjection
from ovseg.grounders.probe import ProbeGrounder, _mean_inside
from ovseg.structures import Entities, Entity, Features, FeatureSpec, Probe, Request

TAPS = {"a": (6, 4), "b": (5, 8), "c": (3, 4)}
PROBES = {"x": (2, 4, 4), "y": (3, 8, 4)}
SIZES = {"widths": (8, 12), "hidden": 12, "evidence": 4, "products": 2}


def spec(steps: int = 1, branches: int = 1, probes: dict | None = PROBES) -> FeatureSpec:
    return FeatureSpec(TAPS, steps, branches, probes or {})


def batch(of: FeatureSpec, size: int = 3, names: int = 2, image: int = 32):
    maps = {
        tap: torch.randn(size, of.steps, of.branches, t.channels, *[image // t.stride] * 2)
        for tap, t in of.taps.items()
    }
    probes = {}
    for name, (heads, stride, width) in of.probes.items():
        side = [image // stride] * 2
        queries = torch.randn(size, of.steps, heads, width, *side)
        totals = torch.randn(size, of.steps, heads, *side)
        probes[name] = Probe(queries, totals, torch.randn(heads, width, 8))
    valid = torch.ones(size, names, dtype=torch.bool)
    ids = torch.arange(1, names + 1).expand(size, names)
    return Features(maps, None, probes), Entities(torch.randn(size, names, 8), ids, valid)


def part(features: Features, rows: slice) -> Features:
    maps = {tap: m[rows] for tap, m in features.maps.items()}
    probes = {
        name: Probe(p.queries[rows], p.totals[rows], p.keys) for name, p in features.probes.items()
    }
    return Features(maps, None, probes)


def small(of: FeatureSpec, **changes) -> ProbeGrounder:
    torch.manual_seed(0)
    return ProbeGrounder(of, 8, **SIZES | changes)


def test_projecting_before_resizing_equals_concatenating():
    torch.manual_seed(0)
    project = MultiscaleProjection([2, 3, 4], 5)
    maps = [torch.randn(2, 2, 8, 8), torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4, 4)]
    together = torch.cat([interpolate(m, size=8, mode="bilinear") for m in maps], dim=1)
    expected = conv2d(together, project.weight, project.bias)
    torch.testing.assert_close(project(maps, (8, 8)), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("steps", "branches"), [(1, 1), (2, 2)])
def test_logits_at_image_size_and_gradients_everywhere(steps, branches):
    of = spec(steps, branches)
    grounder = small(of)
    grounder.meet(torch.randn(3, 8))
    features, entities = batch(of)
    entities.valid[0, 1] = False  # padding
    logits = grounder(features, entities)
    assert logits.shape == (3, 2, 32, 32) and logits.isfinite().all()
    present = grounder.presence(features, entities, logits.detach())
    assert present.shape == (3, 2)
    (logits.square().mean() + present.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in grounder.parameters())


def test_under_mixed_precision_it_learns_and_judges_as_sharply():
    of = spec()
    grounder = small(of)
    grounder.meet(torch.randn(3, 8))
    features, entities = batch(of)
    with torch.autocast("cpu", torch.bfloat16):
        logits = grounder(features, entities)
        present = grounder.presence(features, entities, logits.detach())
        (logits.square().mean() + present.square().mean()).backward()
    assert logits.dtype == torch.bfloat16 and present.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in grounder.parameters())
    grounder.eval()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = grounder.presence(features, entities, logits)
    assert torch.equal(mixed, grounder.presence(features, entities, logits.float()))


def test_features_that_were_read_answer_for_any_names():
    grounder = small(spec()).eval()
    features, entities = batch(spec())
    read = grounder.read(features)
    for names in (entities, batch(spec(), names=4)[1]):
        logits = grounder(features, names)
        assert torch.equal(grounder(read, names), logits)
        present = grounder.presence(features, names, logits)
        assert torch.equal(grounder.presence(read, names, logits), present)
    grounder(read, entities).sum().backward()
    assert grounder.merge.convs[0].weight.grad.abs().sum() > 0


@torch.no_grad()
def test_batch_of_n_equals_n_of_one_and_padding_changes_nothing():
    of = spec()
    grounder = small(of).eval()
    features, entities = batch(of, names=3)
    entities.valid[1, 2] = False
    whole = grounder(features, entities)
    for row in range(3):
        names = slice(0, 2 if row == 1 else 3)
        alone = Entities(
            *(x[row : row + 1, names] for x in (entities.text, entities.class_ids, entities.valid))
        )
        logits = grounder(part(features, slice(row, row + 1)), alone)
        torch.testing.assert_close(logits[0], whole[row, names], atol=1e-5, rtol=1e-4)
    entities.text[1, 2] = 100.0
    torch.testing.assert_close(grounder(features, entities)[1, :2], whole[1, :2])


@torch.no_grad()
def test_a_name_is_known_by_probes_and_text_alone():
    of = spec()
    features, entities = batch(of)
    names = Entities(entities.text.flip(1), entities.class_ids.flip(1), entities.valid)
    for switches in ({}, {"probes": False}, {"text": False}, {"prototypes": False}):
        grounder = small(of, **switches).eval()
        logits = grounder(features, entities)
        # the order of the names is nothing, the names are everything
        torch.testing.assert_close(grounder(features, names).flip(1), logits, atol=1e-5, rtol=1e-4)
        assert (logits[:, 0] - logits[:, 1]).abs().amax() > 1e-3
    features.probes["x"].queries[:] = 0
    blind = small(of, probes=False, others=False).eval()
    seeing = small(of, others=False).eval()
    before = part(features, slice(None))
    before.probes["x"] = Probe(torch.ones_like(before.probes["x"].queries), *_rest(before))
    assert torch.equal(blind(features, entities), blind(before, entities))
    assert not torch.equal(seeing(features, entities), seeing(before, entities))


def _rest(features: Features):
    return features.probes["x"].totals, features.probes["x"].keys


@torch.no_grad()
def test_the_others_of_a_name_are_the_mean_of_the_rest():
    of = spec()
    grounder = small(of).eval()
    features, entities = batch(of, size=1, names=3)
    found = grounder.evidence(features, entities, (8, 8))
    own, others = found[0, :, :4], found[0, :, 4:]
    torch.testing.assert_close(others[0], (own[1] + own[2]) / 2, atol=1e-6, rtol=1e-5)
    entities.valid[0, 1:] = False
    assert (grounder.evidence(features, entities, (8, 8))[0, 0, 4:] == 0).all()


@torch.no_grad()
def test_presence_reads_how_much_higher_the_probes_are_inside_the_mask_and_at_their_highest():
    of = spec(probes={"x": (1, 4, 4)})
    grounder = small(of).eval()
    assert grounder.learns_presence and not small(of, probes=False).learns_presence
    seen = []
    grounder.judge.tell.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    features, entities = batch(of, size=1, names=1)
    logits = torch.full((1, 1, 32, 32), -50.0)
    logits[..., :16] = 50.0
    grounder.presence(features, entities, logits)
    odds = grounder.norms[0](features.probes["x"], entities.text)[0, 0, 0, 0]  # (8, 8)
    assert odds.abs().max() < 8  # nothing is cut
    inside = odds[:, :4].sum() / (32 + 1e-3)
    # the half that is inside: its logits, its area twice, its probabilities
    mask = [50.0, 50 * 512 / 513, 0.5, 0.5, 1.0]
    expected = torch.tensor([*mask, inside - odds.mean(), odds.max() - odds.mean()])
    expected /= (1 + 1e-5) ** 0.5  # no statistics yet: mean 0, variance 1
    torch.testing.assert_close(seen[0][0], expected, atol=1e-5, rtol=1e-4)
    highest = small(of, probes=False).presence(features, entities, logits)
    assert highest.tolist() == [[50.0]]


def test_presence_of_a_single_name_in_training():
    of = spec()
    grounder = small(of)
    grounder.meet(torch.randn(3, 8))
    features, entities = batch(of, size=1, names=1)
    present = grounder.presence(features, entities, grounder(features, entities).detach())
    present.sum().backward()
    assert present.isfinite().all() and grounder.judge.tell[0].weight.grad.isfinite().all()
    assert grounder.rivals.judge.tell[0].weight.grad.isfinite().all()


def test_text_is_hidden_in_training_only():
    of = spec()
    features, entities = batch(of)
    grounder = small(of, text_dropout=0.999999, dropout=0.0)
    with torch.no_grad():
        hidden = grounder(features, entities)
        entities.text.mul_(1.0)
        assert not torch.allclose(hidden, grounder.eval()(features, entities))


@torch.no_grad()
def test_channels_are_hidden_in_training_only():
    of = spec()
    features, _ = batch(of)
    grounder = small(of, dropout=0.5)
    whole, hidden = grounder.eval().pixels(features), grounder.train().pixels(features)
    gone = (hidden == 0).all(dim=(2, 3))  # whole channels, of each image its own
    assert 0 < gone.sum() < gone.numel()
    torch.testing.assert_close(hidden, torch.where(gone[:, :, None, None], 0.0, 2 * whole))


@torch.no_grad()
def test_on_a_real_u_net_live_and_stored(tiny_pipeline):
    backbone = UNetBackbone(
        tiny_pipeline,
        ["down_blocks.0.attentions.0", "down_blocks.1.attentions.0"],
        steps=3,
        tap_steps=(1, 2),
        probes=("down_blocks.0", "mid_block"),
    )
    entities = (Entity(3, "fish", (10, 14)), Entity(4, "tree"))  # the second is not in the prompt
    requests = [Request(0, 5, "a photo of fish", entities)]
    sample = backbone.sample(requests)
    grounder = small_of(backbone).eval()
    logits = grounder(sample.features, sample.entities)
    assert logits.shape == (1, 2, 64, 64)
    stored = backbone.features(sample.latents, sample.timesteps, requests)
    torch.testing.assert_close(grounder(stored, sample.entities), logits, atol=1e-4, rtol=1e-4)
    without = UNetBackbone(tiny_pipeline, list(backbone.taps), steps=3, tap_steps=(1, 2))
    assert without.digest != backbone.digest
    with pytest.raises(ValueError, match="needs the probe 'down_blocks.0.*the backbone has none"):
        grounder(without.sample(requests).features, sample.entities)


def small_of(backbone: UNetBackbone) -> ProbeGrounder:
    torch.manual_seed(0)
    return ProbeGrounder(backbone.feature_spec, backbone.text_width, **SIZES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (0, 1)}, "sizes must be >= 1"),
        ({"widths": (1,)}, r"strides are \[8, 4\], got widths \[1\]"),
        ({"text_dropout": 1.0}, r"dropout in \[0, 1\)"),
        ({"dropout": -0.1}, r"dropout=-0.1"),
        ({"probes": False, "text": False}, "nothing tells one name from another"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        small(spec(), **changes)


def test_a_backbone_without_probes_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="offers no probes: name cross-attention modules"):
        small(spec(probes=None))
    assert small(spec(probes=None), probes=False)(*batch(spec(probes=None))).isfinite().all()


@pytest.mark.parametrize(("probe", "given"), [((4, 8, 4), (1, 4, 4)), ((3, 8, 5), (1, 3, 5))])
def test_other_heads_and_widths_are_refused(probe, given):
    features, entities = batch(spec(probes={"x": (2, 4, 4), "y": probe}))
    with pytest.raises(ValueError) as caught:
        small(spec())(features, entities)
    wanted = "the grounder needs (steps, heads, width) = (1, 3, 4) of the probe 'y'"
    assert str(caught.value) == f"{wanted}; the backbone gives {given}"


def test_a_mean_over_a_large_mask_does_not_overflow_in_half_precision():
    pixels, masks = torch.full((1, 2, 64, 64), 20.0), torch.ones(1, 1, 64, 64)  # 81920 in sum
    with torch.autocast("cpu", torch.float16):
        mean = _mean_inside(pixels, masks)
    torch.testing.assert_close(mean, torch.full((1, 1, 2), 20.0))
