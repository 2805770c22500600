"""ovseg.segmenters.unpickling: what a checkpoint names besides tensors is never called."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovseg.segmenters.unpickling import LeftOut, load_plain


class Fetched:
    """What calls a method that it fetches by getattr when it is unpickled."""

    def __reduce__(self):
        return ("word".upper, ())


def test_objects_are_left_out_and_the_rest_is_there(tmp_path):
    from mmengine.logging import HistoryBuffer

    content = {
        "history": HistoryBuffer([1.0, 2.0], [1, 1]),
        "scalar": np.float64(3),
        "array": np.arange(3),
        "function": getattr,
        "tensor": torch.arange(3),
        "names": ("a", ["b", 1, None]),
    }
    before = set(torch.serialization.get_safe_globals())
    torch.save(content, tmp_path / "a.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("a.pth", "old.pth"):
        loaded = load_plain(tmp_path / name)
        assert loaded["function"] is LeftOut
        for key in ("history", "scalar", "array"):
            assert type(loaded[key]) is LeftOut and not vars(loaded[key])
        assert torch.equal(loaded["tensor"], torch.arange(3))
        assert loaded["names"] == content["names"]
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_history_cannot_change_the_class_of_histories(tmp_path):
    from mmengine.logging import HistoryBuffer

    buffer = HistoryBuffer([1.0], [1])
    before = dict(HistoryBuffer._statistics_methods)
    buffer._statistics_methods = {"mine": HistoryBuffer.min}  # of this one alone
    torch.save(buffer, tmp_path / "a.pth")
    assert type(load_plain(tmp_path / "a.pth")) is LeftOut
    assert HistoryBuffer._statistics_methods == before


def test_everything_else_is_refused_and_named(tmp_path):
    for value, name in ((len, "len"), (tmp_path, r"pathlib\.\w+")):
        torch.save({"x": value}, tmp_path / "a.pth")
        with pytest.raises(ValueError, match=rf"a.pth hold pickled objects \({name}\), which"):
            load_plain(tmp_path / "a.pth")
    torch.save({"x": Fetched()}, tmp_path / "a.pth")
    assert torch.load(tmp_path / "a.pth", weights_only=False) == {"x": "WORD"}
    with pytest.raises(ValueError, match="a.pth are damaged or hold pickled objects"):
        load_plain(tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    for content in (b"", b"no weights", whole[:-40], b"\x80\x02}q\x00(K\x01"):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(ValueError, match="a.pth are damaged or hold pickled objects"):
            load_plain(tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError):
        load_plain(tmp_path / "absent.pth")
