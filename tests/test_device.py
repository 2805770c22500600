"""ovseg.device: where models run."""

from __future__ import annotations

import pytest
import torch

from ovseg.device import find_device


def test_a_device_that_can_be_used():
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "meta"])
def test_one_that_cannot_is_one_line(name):
    with pytest.raises(
        ValueError, match=r"nothing can be computed on the device .*: give"
    ) as caught:
        find_device(name)
    assert "\n" not in str(caught.value)
