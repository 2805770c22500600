"""ovseg.backbones.taps: which blocks there are, and the paper's 25."""

from __future__ import annotations

import pytest
import torch
from geometries import geometry
from torch import nn

from ovseg.backbones.taps import SD1_TAPS, TapRecorder, split_branches

SD15 = geometry("sd15")


def test_the_papers_channel_table_at_stable_diffusion_1_5():
    spec, _ = SD15.measure(SD1_TAPS)
    assert len(SD1_TAPS) == 25 and list(spec) == list(SD1_TAPS)  # named in network order
    table = {
        stride: [t.channels for t in spec.values() if t.stride == stride]
        for stride in (64, 32, 16, 8)
    }
    assert table == {
        64: [1280] * 6,
        32: [640, 1280, 1280, 1280, 1280, 1280],
        16: [320, 640, 640, 1280, 640, 640],
        8: [320, 320, 320, 640, 320, 320, 320],
    }
    assert [sum(row) for row in table.values()] == [7680, 7040, 4160, 2560]


def test_a_tap_that_does_not_exist_or_is_no_map():
    with pytest.raises(ValueError, match=r"no block 'down_blocks.9' to tap.*mid_block"):
        SD15.measure(["conv_in", "down_blocks.9"])
    with pytest.raises(ValueError, match=r"'time_embedding' is no feature map.*\(1, 1280\)"):
        SD15.measure(["time_embedding"])


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.mid_block = nn.Conv2d(1, 2, 1), nn.Identity()
        self.unused = nn.Identity()

    def forward(self, x):
        return self.mid_block((self.conv_in(x), "more"))[0]


def test_recording_only_while_asked():
    toy = Toy()
    recorder = TapRecorder(toy, ["mid_block", "conv_in"])
    x = torch.ones(1, 1, 2, 2)
    with recorder.recording() as outputs:
        result = toy(x)
    assert list(outputs) == ["conv_in", "mid_block"]  # in the order of execution
    assert outputs["mid_block"] is result  # the first of a tuple
    toy(x + 1)
    assert torch.equal(outputs["conv_in"], toy.conv_in(x))


def test_a_feature_that_does_not_arrive_raises():
    toy = Toy()
    with pytest.raises(RuntimeError, match="no feature arrived from unused"):
        with TapRecorder(toy, ["conv_in", "unused"]).recording():
            toy(torch.ones(1, 1, 2, 2))


def test_hooks_survive_a_compiled_network():
    toy = Toy()
    recorder = TapRecorder(toy, ["conv_in"])
    compiled = torch.compile(toy, backend="eager")
    x = torch.ones(1, 1, 2, 2)
    compiled(x)
    with recorder.recording() as outputs:
        compiled(x)
    assert torch.equal(outputs["conv_in"], toy.conv_in(x))


def test_branches_are_paired_by_image():
    output = torch.tensor([0.0, 1, 2, 10, 11, 12]).reshape(6, 1, 1, 1)  # u0 u1 u2 c0 c1 c2
    assert split_branches(output, 2, 2).flatten(1).tolist() == [[0, 10], [1, 11], [2, 12]]
    assert split_branches(output, 2, 1).flatten(1).tolist() == [[10], [11], [12]]
    assert split_branches(output[3:], 1, 1).flatten(1).tolist() == [[10], [11], [12]]
