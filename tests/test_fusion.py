"""ovseg.grounders.fusion: the paper's module, its size and the two shortcuts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d, interpolate, unfold

from ovseg.backbones.taps import SD1_TAPS
from ovseg.grounders.fusion import FusionGrounder
from ovseg.grounders.maps import groups_by_stride
from ovseg.structures import Entities, Features, FeatureSpec

SMALL = {"a": (6, 4), "b": (5, 8), "c": (3, 4), "d": (7, 16)}
SIZES = {"widths": (2, 3, 4), "patch": 2, "layers": 2, "hidden": 16, "heads": 4, "ffn": 24}


def sd1_spec(branches: int) -> FeatureSpec:
    """Write the paper's channel table down by hand, in the order of the blocks."""
    low, mid, high, highest = 64, 32, 16, 8  # strides
    rows = (
        [(320, highest)] * 3
        + [(320, high), (640, high), (640, high)]
        + [(640, mid), (1280, mid), (1280, mid)]
        + [(1280, low)] * 6
        + [(1280, mid)] * 3
        + [(1280, high), (640, high), (640, high)]
        + [(640, highest), (320, highest), (320, highest), (320, highest)]
    )
    return FeatureSpec(dict(zip(SD1_TAPS, rows, strict=True)), branches=branches)


def batch(spec: FeatureSpec, size: int = 3, names: int = 2, width: int = 8, image: int = 64):
    maps = {
        tap: torch.randn(
            size, spec.steps, spec.branches, t.channels, image // t.stride, image // t.stride
        )
        for tap, t in spec.taps.items()
    }
    valid = torch.ones(size, names, dtype=torch.bool)
    text = torch.randn(size, names, width)
    return Features(maps), Entities(text, torch.ones(size, names, dtype=torch.long), valid)


def small(steps: int = 1, branches: int = 2, **changes) -> FusionGrounder:
    torch.manual_seed(0)
    spec = FeatureSpec(changes.pop("taps", SMALL), steps=steps, branches=branches)
    return FusionGrounder(spec, 8, **SIZES | changes)


def test_size_of_the_papers_module():
    with torch.device("meta"):
        grounder = FusionGrounder(sd1_spec(2), 768)
    counts = {n: sum(p.numel() for p in m.parameters()) for n, m in grounder.named_modules()}
    assert [counts[f"projections.{i}"] for i in range(4)] == [245_760, 450_560, 532_480, 655_360]
    assert [counts[f"blocks.{i}"] for i in range(3)] == [41_568, 226_016, 1_037_280]
    assert [counts[f"decoder.{i}"] for i in range(3)] == [4_199_936] * 3
    assert (counts["head"], counts["to_key"], counts["to_query"]) == (648_432, 1_966_080, 393_216)
    assert counts[""] == 18_796_560


def test_groups_of_the_papers_module():
    groups = groups_by_stride(sd1_spec(1))
    spec = sd1_spec(1)
    assert [sum(spec.taps[t].channels for t in g) for g in groups] == [7680, 7040, 4160, 2560]
    assert groups[0] == [
        *("down_blocks.2.downsamplers.0", "down_blocks.3.resnets.0", "down_blocks.3.resnets.1"),
        *("mid_block", "up_blocks.0.resnets.0", "up_blocks.0.resnets.1"),
    ]


def test_pyramid_equals_resizing_before_the_convolution():
    grounder = small().eval()
    features, _ = batch(grounder.feature_spec)

    def group(names: list[str]) -> torch.Tensor:  # channels [u0 | c0 | u1 | c1 ...]
        return torch.cat([features.maps[n][:, 0, g] for n in names for g in range(2)], dim=1)

    def up(x: torch.Tensor, size: int) -> torch.Tensor:
        return interpolate(x, size=(size, size), mode="bilinear", align_corners=False)

    low, mid, high = (p.weight for p in grounder.projections)
    x = up(conv2d(up(group(["d"]), 8), low), 16)
    x = grounder.blocks[0](torch.cat([x, conv2d(up(group(["b"]), 16), mid)], dim=1))
    x = grounder.blocks[1](torch.cat([x, conv2d(group(["a", "c"]), high)], dim=1))
    torch.testing.assert_close(grounder.pyramid(features), x, atol=1e-5, rtol=1e-5)


def test_tokens_are_unfolded_patches():
    grounder = small()
    pyramid = torch.randn(2, 9, 16, 16)
    patches = unfold(pyramid, 2, stride=2).transpose(1, 2)  # (B, 64, 9 * 4)
    torch.testing.assert_close(grounder.tokens(pyramid), grounder.to_key(patches))


def test_logits_equal_the_product_at_image_size():
    grounder = small().eval()
    features, entities = batch(grounder.feature_spec)
    pyramid = grounder.pyramid(features)
    embedding = grounder.embeddings(grounder.tokens(pyramid), entities)
    large = interpolate(pyramid, scale_factor=4, mode="bilinear", align_corners=False)
    expected = torch.einsum("bchw,bkc->bkhw", large, embedding)
    logits = grounder(features, entities)
    assert logits.shape == (3, 2, 64, 64)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_batch_of_n_equals_n_of_one_in_eval_mode():
    grounder = small(steps=2).train()
    features, entities = batch(grounder.feature_spec)
    grounder(features, entities)  # running statistics are no longer the initial ones
    grounder.eval()
    whole = grounder(features, entities)
    for i in range(3):
        one = Features({tap: m[i : i + 1] for tap, m in features.maps.items()})
        names = Entities(
            *(t[i : i + 1] for t in (entities.text, entities.class_ids, entities.valid))
        )
        torch.testing.assert_close(grounder(one, names)[0], whole[i], atol=1e-5, rtol=1e-5)


def test_features_that_were_read_answer_for_any_names():
    grounder = small().eval()
    features, entities = batch(grounder.feature_spec)
    read = grounder.read(features)
    assert read.merged.shape[1] == sum(SIZES["widths"]) and features.merged is None
    for names in (entities, batch(grounder.feature_spec, names=4)[1]):
        assert torch.equal(grounder(read, names), grounder(features, names))


def test_padding_changes_nothing():
    grounder = small().eval()
    features, entities = batch(grounder.feature_spec)
    padded = Entities(
        torch.cat([entities.text, torch.randn(3, 2, 8)], dim=1),
        torch.cat([entities.class_ids, torch.zeros(3, 2, dtype=torch.long)], dim=1),
        torch.cat([entities.valid, torch.zeros(3, 2, dtype=torch.bool)], dim=1),
    )
    torch.testing.assert_close(
        grounder(features, padded)[:, :2], grounder(features, entities), atol=1e-5, rtol=1e-5
    )


def test_names_of_an_image_see_each_other():
    grounder = small().eval()
    features, entities = batch(grounder.feature_spec)
    before = grounder(features, entities)[:, 0]
    entities.text[:, 1] += 1
    assert (grounder(features, entities)[:, 0] - before).abs().max() > 1e-4


def test_a_row_without_names_gives_finite_numbers_and_gradients():
    grounder = small().train()
    features, entities = batch(grounder.feature_spec)
    entities.valid[1] = False
    logits = grounder(features, entities)
    logits[entities.valid].sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in grounder.parameters())


@pytest.mark.parametrize(
    ("taps", "widths"),
    [({"a": (6, 4)}, (5,)), ({"a": (6, 4), "b": (5, 8)}, (3, 4)), (SMALL, (2, 3, 4))],
)
def test_any_number_of_groups_steps_and_branches(taps, widths):
    grounder = small(steps=2, branches=1, taps=taps, widths=widths)
    features, entities = batch(grounder.feature_spec)
    assert grounder(features, entities).shape == (3, 2, 64, 64)


def test_spectral_norm_of_the_convolutions():
    block = small().blocks[0]
    block.train()
    for _ in range(50):
        block(torch.randn(2, 5, 4, 4))  # one power iteration each
    assert torch.linalg.matrix_norm(block.conv1.weight.flatten(1), 2).item() == pytest.approx(
        1, abs=1e-2
    )
    assert "parametrizations.weight.original" in dict(block.conv1.named_parameters())


def test_refusals():
    with pytest.raises(ValueError, match=r"strides are \[16, 8, 4\], got widths \[2, 3\]"):
        small(widths=(2, 3))
    with pytest.raises(ValueError, match="multiple of heads, got hidden=16, heads=3"):
        small(heads=3)
    grounder = small(patch=3)
    with pytest.raises(ValueError, match=r"\(16, 16\), must be a multiple of patch = 3"):
        grounder(*batch(grounder.feature_spec))
    grounder = small(branches=2)
    features, entities = batch(FeatureSpec(SMALL, branches=1))
    with pytest.raises(ValueError, match=r"\(1, 2, 6\) at the tap 'a'"):
        grounder(features, entities)
    del features.maps["b"]
    features.maps["a"] = features.maps["a"].repeat(1, 1, 2, 1, 1, 1)
    with pytest.raises(ValueError, match="needs the tap 'b'; the backbone has a, c, d"):
        grounder(features, entities)
