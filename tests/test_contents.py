"""What is noted of finished shards while a dataset is not complete."""

import os

import pytest
from test_shard_writing import put
from test_sharing import asked

from ovseg.data import contents
from ovseg.data.contents import COUNTS, note_yield, shard_yield
from ovseg.data.manifest import finish, prepare
from ovseg.data.sharing import claim, publish
from ovseg.data.yields import Yield

REJECTING = {"rejected": "drop", "quota": 9, "limit": 9, "requested_classes": None}


@pytest.fixture
def folder(tmp_path):
    """Two shards, the first with a kept and a rejected sample, the second with a kept one."""
    prepare(tmp_path, asked(**REJECTING))
    for number, verdicts in enumerate((["", "area 0.125 < 0.2"], [""])):
        shard = claim(tmp_path, asked(**REJECTING)["config"], number)
        for verdict in verdicts:
            put(shard, 3, verdict)
        publish(tmp_path, shard)
    return tmp_path


@pytest.fixture
def reads(monkeypatch):
    """The shards that are read."""
    read, seen = contents.read_records, []
    monkeypatch.setattr(contents, "read_records", lambda path: seen.append(path) or read(path))
    return seen


def test_a_noted_shard_is_not_read(folder, reads):
    found = [shard_yield(folder, number) for number in (0, 1)]
    assert not reads
    assert [(one.kept, one.rejected, one.reasons) for one in found] == [
        (1, 1, {"area < 0.2": 1}),
        (1, 0, {}),
    ]
    (folder / COUNTS).unlink()
    assert [shard_yield(folder, number) for number in (0, 1)] == found
    assert len(reads) == 4


def test_what_is_cut_or_of_another_file_is_not_believed(folder, reads):
    notes = (folder / COUNTS).read_text().splitlines()
    (folder / COUNTS).write_text(f"{notes[0]}\n{notes[1][:30]}")  # killed in between
    assert shard_yield(folder, 0).rejected == 1 and not reads
    assert shard_yield(folder, 1).kept == 1 and len(reads) == 2
    note_yield(folder, 1, Yield(kept=1))  # stands in the cut line, and is lost with it
    note_yield(folder, 1, Yield(kept=7))
    assert shard_yield(folder, 1).kept == 7
    os.utime(folder / "shard-000001.tar", ns=(1, 1))
    assert shard_yield(folder, 1).kept == 1


def test_a_complete_dataset_needs_no_notes(folder, monkeypatch):
    monkeypatch.setattr("ovseg.data.manifest.describe_shards", lambda *_: {"shards": {}})
    monkeypatch.setattr("ovseg.data.manifest.make_card", lambda facts: "")
    config = {**asked(**REJECTING)["config"], "size": 2, "quota": None}
    assert finish(folder, config)
    assert not (folder / COUNTS).exists() and (folder / "dataset.json").is_file()
