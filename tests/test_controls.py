import torch

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
