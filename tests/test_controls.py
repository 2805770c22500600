import torch

from ovseg import controls
from ovseg.controls import ceiling, foreground, other, two_objects


def squares() -> torch.Tensor:
    """Three masks of 8x8: left half, right half, top row."""
    masks = torch.zeros(1, 3, 8, 8)
    masks[0, 0, :, :4] = 1
    masks[0, 1, :, 4:] = 1
    masks[0, 2, 0] = 1
    return masks


def test_foreground_is_the_union_of_the_valid_masks():
    masks = foreground(squares(), torch.tensor([[True, False, True]]))
    assert masks.shape == (1, 3, 8, 8)
    assert torch.equal(masks[0, 0], masks[0, 1])
    assert masks[0, 0].sum() == 32 + 4


def test_other_swaps_the_two_valid_masks_wherever_they_stand():
    valid = torch.tensor([[True, False, True]])
    masks = squares()
    swapped = other(masks, valid)
    assert torch.equal(swapped[0, 0], masks[0, 2])
    assert torch.equal(swapped[0, 2], masks[0, 0])


def test_two_objects_counts_names():
    valid = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    assert two_objects(valid).tolist() == [True, False, False]


def test_ceiling_keeps_what_the_grid_can_hold_and_loses_what_it_cannot():
    passed = ceiling(squares(), (4, 4)) > 0.5
    assert torch.equal(passed[:, :2], squares()[:, :2] > 0.5)  # edges on the grid survive
    assert not passed[0, 2].any()  # half a cell high: at most 0.5


def test_random_names_are_fixed_by_class_and_as_long_as_the_true_ones():
    text = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[1, 2, 0], [2, 7, 1]])
    random = controls.random_names(text, ids)
    torch.testing.assert_close(random.norm(dim=2), text.norm(dim=2))
    unit = random / random.norm(dim=2, keepdim=True)
    torch.testing.assert_close(unit[0, 1], unit[1, 0])
    torch.testing.assert_close(unit[0, 0], unit[1, 2])
    assert (unit[0, 0] - unit[0, 1]).abs().max() > 0.1
    alone = controls.random_names(text[:1], ids[:1])  # whatever else is in the batch
    torch.testing.assert_close(alone, random[:1])
    assert controls.random_names(text[:0], ids[:0]).shape == (0, 3, 5)


def test_absent_classes_are_of_the_same_kind_and_not_in_the_image():
    kinds = ((1, 2, 3, 4), (8, 9))
    ids = torch.tensor([[1, 2], [8, 1], [3, 0], [8, 9]])
    chosen = controls.absent_classes(ids, torch.arange(4), kinds)
    # by hand: {3, 4} at place 0, then 4 is left; 9, then {2, 3, 4} at place 3; {1, 2, 4} at 4
    assert chosen.tolist() == [[3, 4], [9, 2], [2, 0], [0, 0]]
    assert torch.equal(chosen[1:2], controls.absent_classes(ids[1:2], torch.tensor([1]), kinds))
