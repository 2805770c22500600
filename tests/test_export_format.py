"""What the export formats share: the two parts, and the objects of a sample."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from exported import make_sample

from ovseg.export.format import Format, part_of, segments_of


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_parts_have_their_share_and_follow_from_the_key_alone(share):
    keys = [f"{n:08d}" for n in range(4000)]
    val = [key for key in keys if part_of(key, share) == "val"]
    assert abs(len(val) / 4000 - share) < 0.02
    by_hand = [k for k in keys if int(hashlib.sha256(k.encode()).hexdigest(), 16) / 2**256 < share]
    assert val == by_hand


def test_a_larger_share_keeps_what_a_smaller_one_has():
    keys = [f"{n:08d}" for n in range(500)]
    few, many = ({k for k in keys if part_of(k, share) == "val"} for share in (0.1, 0.2))
    assert few < many


def tiny(mask, numbers=None):
    sample = replace(make_sample(0, 5, False), mask=np.array(mask, np.uint8))
    return sample if numbers is None else replace(sample, instances=np.array(numbers, np.uint16))


MASK = [[0, 2, 2, 254], [0, 255, 2, 1]]


def test_objects_are_classes_without_instances():
    found = [(c, m.astype(int).tolist()) for c, m in segments_of(tiny(MASK))]
    assert found == [
        (1, [[0, 0, 0, 0], [0, 0, 0, 1]]),
        (2, [[0, 1, 1, 0], [0, 0, 1, 0]]),
        (254, [[0, 0, 0, 1], [0, 0, 0, 0]]),
    ]


def test_instances_divide_classes_and_pixels_without_one_are_their_own_object():
    numbers = [[7, 65535, 1, 3], [0, 3, 0, 1]]  # at background and ignore they mean nothing
    found = [(c, m.astype(int).tolist()) for c, m in segments_of(tiny(MASK, numbers))]
    assert found == [
        (1, [[0, 0, 0, 0], [0, 0, 0, 1]]),
        (2, [[0, 0, 0, 0], [0, 0, 1, 0]]),
        (2, [[0, 0, 1, 0], [0, 0, 0, 0]]),
        (2, [[0, 1, 0, 0], [0, 0, 0, 0]]),
        (254, [[0, 0, 0, 1], [0, 0, 0, 0]]),
    ]


def test_nothing_there():
    assert segments_of(tiny([[0, 255]])) == []


def test_a_format_writes_below_its_folder(tmp_path):
    class Own(Format):
        def add(self, item): ...
        def finish(self): ...

    Own(tmp_path, None, {}).write("a/b.txt", "ß")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "ß".encode()
