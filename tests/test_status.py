"""`ovseg status` of folders in every state."""

import fcntl
import json
import os
import subprocess
import sys

import pytest
from acme.backbone import ToyBackbone
from toy_data import contents, data_module, live_stream, write_dataset

from ovseg.__main__ import main
from ovseg.quality import QualityFilter
from ovseg.status import show, status_of

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def dataset(tmp_path):
    """Ten samples in shards of 4, 4 and 2, finished 10, 20 and 25 seconds after the start."""
    judge = QualityFilter(min_area=0.2, must_be_found=True)
    stream = live_stream(10, filter=judge)
    data = data_module(backbone=ToyBackbone(forget=0.2), predict={"data": stream})
    write_dataset(tmp_path / "set", data)
    times = {"request.json": 0, **{f"shard-{n:06d}.tar": at for n, at in enumerate((10, 20, 25))}}
    for name, at in times.items():
        os.utime(tmp_path / "set" / name, (1e9 + at, 1e9 + at))
    return tmp_path / "set"


def half_done(folder):
    """Leave the first two shards, and a file that nobody writes any more."""
    (folder / "dataset.json").unlink()
    (folder / "shard-000002.tar").rename(folder / "shard-000002.tar.tmp")


def test_a_complete_one(dataset):
    status = status_of(dataset)
    assert (status.state, status.done, status.writing, status.total) == ("complete", 3, 0, 3)
    assert status.so_far.kept + status.so_far.rejected == 10
    numbers = json.loads((dataset / "dataset.json").read_text())
    assert status.so_far.describe(numbers["vocabulary"]["keys"]) == numbers["yield"]
    assert status.rate == pytest.approx(10 / 25) and status.left is None


def test_a_killed_one(dataset):
    half_done(dataset)
    status = status_of(dataset)
    assert (status.state, status.done, status.writing, status.total) == ("stopped", 2, 0, 3)
    assert status.so_far.kept + status.so_far.rejected == 8
    assert status.rate == pytest.approx(8 / 20) and status.left is None
    os.utime(dataset / "request.json", (1e9 + 12, 1e9 + 12))  # started again after the first
    assert status_of(dataset).rate == pytest.approx(4 / 8)
    os.utime(dataset / "request.json", (1e9 + 60, 1e9 + 60))
    assert status_of(dataset).rate is None


def test_a_running_one(dataset):
    half_done(dataset)
    before = contents(dataset)
    command = [sys.executable, "-c", HOLD, str(dataset / "shard-000002.tar.tmp")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as writer:
        assert writer.stdout.readline() == "locked\n"
        status = status_of(dataset)
        with open(dataset / "shard-000002.tar.tmp", "ab") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it has not been disturbed
        writer.communicate("")
    assert (status.state, status.done, status.writing, status.total) == ("running", 2, 1, 3)
    assert status.left == pytest.approx(4 / (8 / 20))  # a whole shard at most
    assert status_of(dataset).state == "stopped"
    assert contents(dataset) == before


def test_nothing_done_yet(dataset):
    for path in dataset.glob("shard-*"):
        path.unlink()
    (dataset / "dataset.json").unlink()
    status = status_of(dataset)
    assert (status.state, status.done, status.total, status.rate) == ("stopped", 0, 3, None)


def test_a_quota_says_what_is_missing(tmp_path):
    stream = live_stream(4, ["house", "fish", "car"], quota=3, limit=20)
    write_dataset(tmp_path, data_module(backbone=ToyBackbone(), predict={"data": stream}))
    shards = len(list(tmp_path.glob("shard-*.tar")))
    assert shards > 1 and status_of(tmp_path).missing == {}
    (tmp_path / "dataset.json").unlink()
    (tmp_path / f"shard-{shards - 1:06d}.tar").unlink()
    status = status_of(tmp_path)
    assert status.missing and set(status.missing) <= {"house", "fish", "car"}
    assert (status.done, status.total) == (shards - 1, shards)
    keys = json.loads((tmp_path / "request.json").read_text())["config"]["vocabulary"]["keys"]
    for key, lacks in status.missing.items():
        assert lacks == 3 - status.so_far.gained[keys.index(key)] > 0


def test_what_is_printed(dataset, capsys):
    assert main(["status", str(dataset)]) == 0
    printed = capsys.readouterr().out
    assert "set: complete" in printed and "3 done, 0 being written, 0 pending" in printed
    assert len(printed.splitlines()) < 40 and "samples kept" in printed
    half_done(dataset)
    assert main(["status", str(dataset), "--config"]) == 0
    printed = capsys.readouterr().out
    assert "set: stopped" in printed and "2 done, 0 being written, 1 pending" in printed
    assert "rate: 0.4 samples/s" in printed and '"shard_size": 4' in printed
    assert main(["status", str(dataset.parent)]) == 2
    assert "give a folder that `predict` writes" in capsys.readouterr().err


def test_names_are_printed_as_they_are(dataset, capsys):
    """Brackets and colons mean something to what prints them."""
    config = json.loads((dataset / "request.json").read_text())["config"]
    keys = [
        "background",
        *(f"[b]{n}[/i] :cat:" for n in range(1, len(config["vocabulary"]["keys"]))),
    ]
    status = status_of(dataset)._replace(missing={"[b]1[/i] :cat:": 2})
    facts = {"vocabulary": {"keys": keys}, "quota": 3}
    show(dataset.parent / "x[/b] :dog:", status, facts)
    printed = capsys.readouterr().out
    assert "x[/b] :dog:: complete" in printed and "missing: [b]1[/i] :cat: 2" in printed
    assert printed.count("[/i] :cat:") > 1  # in the table of classes too
