"""Losses of label maps, by numbers worked out by hand and by plain loops."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from ovseg.losses_segmentation import (
    Bootstrapped,
    CrossEntropy,
    SymmetricCrossEntropy,
    UnseenWherePresent,
    ignore_borders,
)

# three pixels of two classes: probabilities 3/4 and 1/4, 1/4 and 3/4, and one that is ignored
LOGITS = torch.tensor([[[[math.log(3), 0.0, 9.0]], [[0.0, math.log(3), 0.0]]]])
LABELS = torch.tensor([[[0, 0, 255]]])
SURE, UNSURE = -math.log(3 / 4), -math.log(1 / 4)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (CrossEntropy(), (SURE + UNSURE) / 2),
        # the first is right: both targets are class 0; the second is said to be class 1
        (Bootstrapped(0.8), (SURE + 0.8 * UNSURE + 0.2 * SURE) / 2),
        (Bootstrapped(1.0), (SURE + UNSURE) / 2),
        (SymmetricCrossEntropy(1, 1), (SURE + 4 * 0.25 + UNSURE + 4 * 0.75) / 2),
        (SymmetricCrossEntropy(0.1, 0.5, -6), (0.1 * (SURE + UNSURE) + 0.5 * 6 * 1) / 2),
    ],
)
def test_numbers_by_hand(loss, expected):
    assert loss(LOGITS, LABELS).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", [CrossEntropy(), Bootstrapped(), SymmetricCrossEntropy()])
def test_ignored_pixels_have_no_part_in_it(loss):
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 4, 6, requires_grad=True)
    labels = torch.randint(0, 5, (2, 4, 6))
    labels[:, :, 3:] = 255
    whole = loss(logits, labels)
    assert whole.item() == pytest.approx(loss(logits[..., :3], labels[..., :3]).item(), rel=1e-6)
    whole.backward()
    assert (logits.grad[..., 3:] == 0).all() and (logits.grad[..., :3] != 0).all()
    nothing = loss(logits, torch.full_like(labels, 255))
    assert nothing.item() == 0 and nothing.requires_grad


def test_cross_entropy_is_torchs():
    torch.manual_seed(1)
    logits, labels = torch.randn(2, 7, 5, 5), torch.randint(0, 7, (2, 5, 5))
    labels[0, :3] = 255
    expected = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(CrossEntropy()(logits, labels), expected)


def test_a_wrong_label_pulls_less():
    """The gradient of a pixel that is sure of another class than its label."""
    pulls = []
    for loss in (CrossEntropy(), Bootstrapped(0.8), SymmetricCrossEntropy(0.1, 0.1)):
        logits = torch.tensor([[[[8.0]], [[0.0]]]], requires_grad=True)
        loss(logits, torch.tensor([[[1]]])).backward()
        pulls.append(logits.grad[0, 0].item())
    assert pulls[0] == pytest.approx(1, abs=1e-3)
    assert pulls[1] == pytest.approx(0.8, abs=1e-3)
    assert pulls[2] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("band", [0, 1, 2, 7])
def test_borders_by_loops(band):
    torch.manual_seed(2)
    labels = torch.randint(0, 3, (2, 4, 3)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[0, 4:8, 4:8] = 255
    expected = labels.clone()
    for image in range(2):
        for y in range(16):
            for x in range(12):
                near = labels[
                    image, max(y - band, 0) : y + band + 1, max(x - band, 0) : x + band + 1
                ]
                if len(near[near != 255].unique()) > 1:
                    expected[image, y, x] = 255
    found = ignore_borders(labels, band)
    assert torch.equal(found, expected) and found.dtype == torch.int64
    assert (labels[1] != 255).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Bootstrapped(1.2),
        lambda: SymmetricCrossEntropy(-1),
        lambda: SymmetricCrossEntropy(1, 1, 0),
    ],
)
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        wrong()


def test_unseen_classes_are_left_out_where_none_is_labelled():
    """Two pixels of one image hold no unseen class, those of the other do; logs of 1, 2, 4, 8."""
    words = SimpleNamespace(unseen=(2, 3))
    loss = UnseenWherePresent()
    with pytest.raises(RuntimeError, match="bind"):
        loss(torch.zeros(1, 4, 1, 1), torch.zeros(1, 1, 1).long())
    loss.bind(words)
    row = torch.tensor([1.0, 2.0, 4.0, 8.0]).log()
    logits = row.view(1, 4, 1, 1).repeat(2, 1, 1, 3).requires_grad_()
    labels = torch.tensor([[[0, 1, 255]], [[0, 2, 255]]])
    absent = -math.log(1 / 3) - math.log(2 / 3)
    present = -math.log(1 / 15) - math.log(4 / 15)
    value = loss(logits, labels)
    assert value.item() == pytest.approx((absent + present) / 4, rel=1e-6)
    value.backward()
    assert (logits.grad[0, 2:] == 0).all() and (logits.grad[1, 2:, :, :2] != 0).all()
    assert logits.grad.isfinite().all()


def test_any_loss_of_pixels_can_leave_unseen_classes_out():
    loss = UnseenWherePresent(SymmetricCrossEntropy(1, 1))
    loss.bind(SimpleNamespace(unseen=(2,)))
    logits = torch.cat([LOGITS, torch.full((1, 1, 1, 3), 5.0)], dim=1)
    expected = SymmetricCrossEntropy(1, 1)(LOGITS, LABELS)
    torch.testing.assert_close(loss(logits, LABELS), expected)
