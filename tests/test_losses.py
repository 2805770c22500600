import math

import pytest
import torch

from ovseg.losses import (
    grounding_loss,
    mask_bce,
    mask_dice,
    mean_count,
    presence_loss,
    with_negatives,
)
from ovseg.structures import Entities


def test_bce_averages_over_counted_pixels_only():
    logits = torch.tensor([[[[0.0, 2.0], [5.0, -1.0]]]])
    targets = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]])
    pixels = torch.tensor([[[[True, True], [False, True]]]])
    by_hand = (math.log(2) + math.log(1 + math.exp(2)) + math.log(1 + math.exp(1))) / 3
    assert mask_bce(logits, targets, pixels).item() == pytest.approx(by_hand, rel=1e-6)


def test_dice_of_a_half_certain_mask():
    # p = 0.5 on 4 pixels, truth on 2, one pixel of the truth ignored: 3 pixels count
    targets = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    pixels = torch.tensor([[[[True, False], [True, True]]]])
    dice = mask_dice(torch.zeros(1, 1, 2, 2), targets, pixels)
    assert dice.item() == pytest.approx(1 - (2 * 0.5 + 1) / (1.5 + 1 + 1))


def test_dice_of_an_empty_target_wants_an_empty_mask():
    pixels = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    empty, full = torch.full((1, 1, 2, 2), -50.0), torch.full((1, 1, 2, 2), 50.0)
    targets = torch.zeros(1, 1, 2, 2)
    assert mask_dice(empty, targets, pixels).item() == pytest.approx(0.0, abs=1e-6)
    assert mask_dice(full, targets, pixels).item() == pytest.approx(1 - 1 / 5)


def test_an_entity_not_found_carries_no_loss():
    logits = torch.tensor([0.0, 9.0]).view(1, 2, 1, 1).requires_grad_()
    targets = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    pixels = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    loss = grounding_loss(logits, targets, pixels, torch.tensor([[True, False]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert logits.grad.view(-1).tolist() == pytest.approx([-0.5, 0.0])


def test_logits_are_resized_to_the_targets():
    pixels = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    targets = torch.zeros(1, 1, 8, 8)
    loss = grounding_loss(torch.zeros(1, 1, 2, 2), targets, pixels, torch.tensor([[True]]), dice=2)
    assert loss.item() == pytest.approx(math.log(2) + 2 * (1 - 1 / 33))


def test_a_batch_with_nothing_found_gives_a_zero_that_reaches_every_parameter():
    layer = torch.nn.Conv2d(1, 2, 1)
    logits = layer(torch.ones(1, 1, 4, 4))
    pixels = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    found = torch.zeros(1, 2, dtype=torch.bool)
    loss = grounding_loss(logits, torch.zeros(1, 2, 4, 4), pixels, found, dice=1.0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


def test_count_is_at_least_one():
    assert mean_count(torch.tensor(0)) == 1
    assert mean_count(torch.tensor(7)) == 7


def entities() -> Entities:
    ids = torch.tensor([[1, 2], [2, 3], [4, 0]])
    valid = torch.tensor([[True, True], [True, True], [True, False]])
    return Entities(ids[..., None].float() * 10, ids, valid)


NAMES = {i: torch.tensor([10.0 * i]) for i in (1, 2, 3, 4)}


def test_negatives_are_names_of_other_samples():
    more = with_negatives(entities(), 2, NAMES)
    assert more.class_ids.tolist() == [[1, 2, 3, 4], [2, 3, 4, 1], [4, 0, 1, 2]]
    assert torch.equal(more.text[..., 0], more.class_ids.float() * 10)
    assert more.valid.tolist() == [[True] * 4, [True] * 4, [True, False, True, True]]


def test_too_few_names_leave_negatives_invalid():
    more = with_negatives(entities(), 3, NAMES)
    assert more.class_ids[0].tolist() == [1, 2, 3, 4, 0]
    assert more.valid[0].tolist() == [True, True, True, True, False]


def test_names_that_may_not_be_learnt_are_no_negatives():
    more = with_negatives(entities(), 2, {2: NAMES[2], 4: NAMES[4]})
    assert more.class_ids.tolist() == [[1, 2, 4, 0], [2, 3, 4, 0], [4, 0, 2, 0]]
    assert more.valid[:, 2:].tolist() == [[True, False]] * 3
    assert not with_negatives(entities(), 1, {}).valid[:, 2].any()


@pytest.mark.parametrize("turn, expected", [(0, [1, 3]), (3, [4, 1]), (7, [4, 1])])
def test_one_sample_alone_gets_any_other_name(turn, expected):
    alone = Entities(torch.tensor([[[20.0]]]), torch.tensor([[2]]), torch.tensor([[True]]))
    more = with_negatives(alone, 2, NAMES, turn)
    assert more.class_ids.tolist() == [[2, *expected]] and more.valid.all()
    assert torch.equal(more.text[..., 0], more.class_ids.float() * 10)


def test_presence_loss_by_hand():
    logits = torch.tensor([[0.0, 9.0, 1.0], [2.0, 0.0, 5.0]])
    targets = torch.tensor([[True, True, False], [True, True, False]])
    counted = torch.tensor([[True, False, True], [True, True, False]])
    expected = 2 * math.log(2) + math.log(1 + math.exp(-2)) + math.log(1 + math.e)
    loss = presence_loss(logits, targets, counted)
    assert loss.item() == pytest.approx(expected / 4, rel=1e-5)
    assert presence_loss(logits, targets, counted & False).item() == 0.0
