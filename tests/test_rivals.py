"""ovseg.grounders.rivals: whether a name is there, or one of the others in its place."""

import pytest
import torch

from ovseg.grounders import rivals as module
from ovseg.grounders.rivals import Judge, Rivals

EYE = torch.eye(4)


@pytest.fixture
def rivals():
    """Two probes of one head; three names along the axes."""
    torch.manual_seed(0)
    made = Rivals([1, 1], 4, slots=4).eval()
    made.meet(EYE[:3])
    return made


@torch.no_grad()
def test_leads_over_the_highest_rival_by_hand(rivals):
    seen = []
    rivals.judge.tell.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    own = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 2, 1, 2, 2)  # the same for both names
    levels = torch.tensor([5.0, 1.0, 0.0])
    others = levels[None, :, None, None, None].expand(1, 3, 1, 2, 2)
    masks = torch.zeros(1, 2, 4, 4)
    masks[:, :, :2] = 1  # the upper half
    text = EYE[[0, 3]][None]  # the first rival itself, and a name that none of them is
    valid = torch.ones(1, 2, dtype=torch.bool)
    present = rivals([own, own], [others, others], text, masks, valid)
    assert present.shape == (1, 2)
    half = 2 / (2 + 1e-3)
    expected = torch.tensor(
        [
            [(0 + 1) / 2 * half, 3.0] * 2,  # against 1, the highest of the other two
            [(-4 - 3) / 2 * half, -1.0] * 2,  # against 5
        ]
    )
    torch.testing.assert_close(seen[0], expected / (1 + 1e-5) ** 0.5)


@torch.no_grad()
def test_another_word_for_a_rival_is_no_rival(rivals):
    middle = EYE[:3].mean(dim=0)
    close = (EYE[0] - middle) * 1.3 + middle + 0.05 * EYE[3]
    assert rivals._same(torch.stack([close, EYE[1], EYE[3]])[None]).tolist() == [
        [[True, False, False], [False, True, False], [False, False, False]]
    ]


@torch.no_grad()
def test_padding_gets_zero_and_changes_nothing(rivals):
    own, others = torch.randn(1, 2, 1, 2, 2), torch.randn(1, 3, 1, 2, 2)
    masks, text = torch.rand(1, 2, 4, 4), EYE[[3, 0]][None]
    valid = torch.tensor([[True, False]])
    padded = rivals([own, own], [others, others], text, masks, valid)
    alone = rivals([own[:, :1]] * 2, [others] * 2, text[:, :1], masks[:, :1], valid[:, :1])
    assert padded[0, 1] == 0 and torch.equal(padded[:, :1], alone)


def test_names_beyond_the_slots_are_thinned_out():
    rivals = Rivals([1], 4, slots=3)
    assert len(rivals.names) == 0
    rivals.meet(torch.arange(28.0).view(7, 4))
    assert rivals.names[:, 0].tolist() == [0, 8, 16]  # names 0, 2 and 4 of 7
    rivals.meet(EYE[:2])
    assert torch.equal(rivals.names, EYE[:2]) and (rivals.text[2:] == 0).all()


def test_averaged_weights_know_as_many_names():
    """Of a moving average, the number of names is 15 only up to rounding."""
    rivals, decay = Rivals([1], 4, slots=20), 0.9
    rivals.meet(torch.randn(15, 4))
    for _ in range(50):
        rivals.known.copy_(decay * rivals.known + (1 - decay) * rivals.known)
    assert len(rivals.names) == 15


@torch.no_grad()
def test_one_name_alone_is_itself():
    rivals = Rivals([1], 4)
    rivals.meet(EYE[:1])
    assert rivals._same(EYE[:2][None]).tolist() == [[[True], [False]]]


@pytest.mark.parametrize("several, expected", [(True, [1, 2]), (False, [2])])
def test_a_norm_that_others_wait_for_is_called_for_a_single_name(several, expected, monkeypatch):
    """As a collective of all processes; alone, one row has no statistics of its own."""
    monkeypatch.setattr(module, "_synced", lambda norm: several)
    judge, calls = Judge(3).train(), []
    monkeypatch.setattr(judge.standardise, "forward", lambda x: calls.append(len(x)) or x)
    for names in (1, 2):
        judge(torch.randn(1, names, 3), torch.ones(1, names, dtype=torch.bool))
    assert calls == expected


@pytest.mark.parametrize("processes, synced", [(2, True), (1, False)])
def test_whose_statistics_are_taken_with_its_own(processes, synced, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
    assert module._synced(torch.nn.SyncBatchNorm(3)) == synced
    assert not module._synced(torch.nn.BatchNorm1d(3))
