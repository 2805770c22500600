"""Views by MMSegmentation's transforms."""

import random

import numpy as np
import pytest
import torch
import yaml
from test_cli import ROOT

from ovseg.augment_mmseg import MMSegAugmentation

CROP = {"type": "RandomCrop", "crop_size": [16, 24], "cat_max_ratio": 0.75}


@pytest.fixture
def batch():
    """Return images whose red channel is the label, times ten."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 20, (6, 5, 6), generator=generator)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = torch.stack([labels * 10, labels * 0 + 40, labels * 0 + 90], dim=1)
    return images.to(torch.uint8), labels


def test_nothing_asked_for_changes_nothing(batch):
    images, labels = MMSegAugmentation([])(*batch, step=3)
    assert torch.equal(images, batch[0]) and torch.equal(labels, batch[1])
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64


def test_images_and_labels_move_together(batch):
    views, ids = MMSegAugmentation([CROP, {"type": "RandomFlip", "prob": 0.5}])(*batch, step=0)
    assert views.shape == (6, 3, 16, 24) and ids.shape == (6, 16, 24)
    assert torch.equal(views[:, 0].long(), ids * 10)
    assert (views[:, 1] == 40).all() and (views[:, 2] == 90).all()  # red, green, blue stay
    mirrored = 0
    for view, whole in zip(ids.numpy(), batch[1].numpy(), strict=True):
        found = []
        for candidate in (whole, whole[:, ::-1]):
            windows = np.lib.stride_tricks.sliding_window_view(candidate, (16, 24))
            found.append((windows == view).all((2, 3)).any())
        assert any(found)
        mirrored += found[1] and not found[0]
    assert 0 < mirrored < 6


def test_a_view_is_a_function_of_seed_step_and_rank(batch):
    chain = [CROP, {"type": "RandomFlip", "prob": 0.5}, {"type": "PhotoMetricDistortion"}]
    np.random.seed(1)
    random.seed(1)
    before = np.random.get_state()[1].copy(), random.getstate()
    first = MMSegAugmentation(chain)(*batch, step=4)
    assert np.array_equal(before[0], np.random.get_state()[1]) and before[1] == random.getstate()
    np.random.seed(2)
    again = MMSegAugmentation(chain)(*batch, step=4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for seed, step, rank in ((0, 5, 0), (0, 4, 1), (1, 4, 0)):
        other = MMSegAugmentation(chain, seed=seed)(*batch, step=step, rank=rank)
        assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1][0], first[1][1])


def test_the_published_chain_pads_labels_with_ignore(batch):
    text = (ROOT / "configs" / "segmentation" / "published_schedule.yaml").read_text()
    augment = yaml.safe_load(text)["model"]["init_args"]["augment"]["init_args"]
    views, ids = MMSegAugmentation(**augment)(*batch, step=7)
    assert views.shape == (6, 3, 512, 512) and ids.shape == (6, 512, 512)
    padded = ids == 255
    assert 0 < padded.float().mean() < 1
    assert {tuple(color.tolist()) for color in views.movedim(1, -1)[padded]} == {(124, 116, 104)}
    assert set(ids.unique().tolist()) <= {*range(20), 255}


def test_bad_transforms_are_refused(batch):
    with pytest.raises(ValueError, match="cannot build the transforms: .*NoSuch"):
        MMSegAugmentation([{"type": "NoSuch"}])
    with pytest.raises(ValueError, match="cannot build the transforms"):
        MMSegAugmentation([{"type": "RandomCrop", "crop_size": [-1, 4]}])
    uneven = {"type": "RandomResize", "scale": [48, 40], "ratio_range": [0.5, 2.0]}
    with pytest.raises(ValueError, match="make no batch: .*Pad"):
        MMSegAugmentation([{**uneven, "keep_ratio": True}])(*batch, step=0)


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        ({"type": "LoadAnnotations"}, r"LoadAnnotations cannot be applied .*\(KeyError: 'seg_map"),
        ({"type": "PackSegInputs"}, "PackSegInputs leaves no image with a label map: leave out"),
        ({"type": "RandomResize", "scale": 512}, "RandomResize cannot .*NotImpl.*512"),
    ],
)
def test_transforms_that_cannot_run_are_named(transform, reason, batch):
    views = MMSegAugmentation([CROP, transform])
    with pytest.raises(ValueError, match=f"the transform {reason}") as error:
        views(*batch, step=0)
    assert "\n" not in str(error.value)
