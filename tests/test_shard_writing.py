"""A shard and its rejects: which gets its name first, and what a failure leaves."""

import fcntl
import os
import subprocess
import sys
import threading

import pytest
from test_shard_format import make_sample, members_of

from ovseg.data.shard_file import read_members
from ovseg.data.shard_format import encode_sample
from ovseg.data.shard_writing import (
    Shard,
    _elsewhere,
    held_shards,
    is_locked,
    locked,
    telling_where,
)


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def judged(index=3, verdict=""):
    record = make_sample(index).record
    return make_sample(index, record=record._replace(verdict=[verdict]))


def put(shard, index=3, verdict=""):
    sample = judged(index, verdict)
    shard.write(encode_sample(sample), sample.record)


@pytest.mark.parametrize(
    ("rejected", "parts"), [("drop", {"json"}), ("apart", set(members_of(make_sample())))]
)
def test_rejects_stand_in_a_file_beside(tmp_path, rejected, parts):
    with Shard(tmp_path, 3, rejected) as shard:
        for index in range(4):
            put(shard, index, "area 0.125 < 0.2" if index == 2 else "")
        assert (shard.counted.kept, shard.counted.rejected) == (3, 1)
        assert names(tmp_path) == ["rejected/shard-000003.tar.tmp", "shard-000003.tar.tmp"]
    assert names(tmp_path) == ["rejected/shard-000003.tar", "shard-000003.tar"]
    kept = list(read_members(tmp_path / "shard-000003.tar"))
    assert kept == [members_of(judged(index)) for index in (0, 1, 3)]
    (sample,) = read_members(tmp_path / "rejected" / "shard-000003.tar")
    whole = members_of(judged(2, "area 0.125 < 0.2"))
    assert sample == {part: whole[part] for part in parts}


def test_the_rejects_get_their_name_first(tmp_path, monkeypatch):
    order, replace = [], os.replace
    monkeypatch.setattr("os.replace", lambda old, new: (order.append(new), replace(old, new)))
    Shard(tmp_path, 0, "drop").publish()
    assert order == [tmp_path / "rejected" / "shard-000000.tar", tmp_path / "shard-000000.tar"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), Shard(tmp_path, 0, "drop") as shard:
        put(shard)
        raise KeyboardInterrupt
    assert names(tmp_path) == []
    with pytest.raises(
        OSError, match="cannot write .*shard-000000.tar .No space.*the same command"
    ):
        with telling_where(tmp_path / "shard-000000.tar"):
            raise OSError(28, "No space left on device")


def test_without_a_filter_there_is_one_file(tmp_path):
    with Shard(tmp_path, 0) as shard:
        put(shard)
    assert names(tmp_path) == ["shard-000000.tar"]


def test_a_lock_is_seen_without_being_touched(tmp_path):
    path = tmp_path / "shard-000000.tar.tmp"
    path.touch()
    assert not is_locked(path)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_locked(path)
    assert not is_locked(path)


def test_a_record_lock_is_seen_too(tmp_path):
    """What a file server makes of an flock on another machine."""
    path = tmp_path / "shard-000000.tar.tmp"
    path.touch()
    command = (
        "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print(flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", command, path], stdin=pipe, stdout=pipe) as other:
        other.stdout.readline()
        assert _elsewhere(path) and is_locked(path)
        other.communicate(b"")
    assert not _elsewhere(path) and not is_locked(path)


def test_held_are_those_of_the_living(tmp_path):
    shards = [Shard(tmp_path, number, "drop") for number in (1, 3)]
    (tmp_path / "shard-000002.tar.tmp").touch()
    assert held_shards(tmp_path) == {1, 3}
    shards[0].publish()
    assert held_shards(tmp_path) == {3}
    shards[1].drop()
    assert held_shards(tmp_path) == set()


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(50):
            with locked(tmp_path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 200 and names(tmp_path) == []
