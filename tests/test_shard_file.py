"""The files of shards: their index, and what is read of them."""

import os
import pickle
from pathlib import Path

import pytest
from test_shard_format import make_sample, members_of
from webdataset import TarWriter

from ovseg.data.shard_file import (
    OpenShards,
    index_shard,
    read_members,
    read_records,
    shard_name,
    shard_number,
)
from ovseg.data.shard_format import encode_sample


def write_shard(path, samples):
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for sample in samples:
            tar.write(encode_sample(sample))
    return path


def test_index_points_at_the_members(tmp_path):
    samples = [make_sample(index) for index in (5, 6, 7)]
    path = write_shard(tmp_path / "a.tar", samples)
    index = index_shard(path, 3)
    data = path.read_bytes()
    for sample, members in zip(samples, index, strict=True):
        cut = {ext: data[start : start + size] for ext, (start, size) in members.items()}
        assert cut == members_of(sample)


@pytest.mark.parametrize("keep", [0, 100, 700, 5000, -3000])
def test_cut_shards_are_named(tmp_path, keep):
    path = write_shard(tmp_path / "a.tar", [make_sample(index) for index in range(4)])
    data = path.read_bytes()
    path.write_bytes(data[:keep] if keep >= 0 else data[: len(data) + keep - 10240])
    with pytest.raises(ValueError, match="a.tar is damaged: delete it and run `predict` again"):
        index_shard(path, 4)


def test_wrong_files(tmp_path):
    with pytest.raises(ValueError, match="none.tar is missing: run `predict` again"):
        index_shard(tmp_path / "none.tar")
    path = write_shard(tmp_path / "a.tar", [make_sample()])
    with pytest.raises(ValueError, match="1 samples, not 2"):
        index_shard(path, 2)
    (tmp_path / "text.tar").write_text("no tar at all" * 100)
    with pytest.raises(ValueError, match="text.tar is damaged"):
        index_shard(tmp_path / "text.tar")


def test_a_shard_may_hold_nothing(tmp_path):
    path = write_shard(tmp_path / "a.tar", [])
    assert index_shard(path) == index_shard(path, 0) == read_records(path) == []
    with pytest.raises(ValueError, match="0 samples, not 1"):
        index_shard(path, 1)


def test_records_and_members_are_those_written(tmp_path):
    samples = [make_sample(index) for index in (5, 6)]
    path = write_shard(tmp_path / "a.tar", samples)
    assert read_records(path, 2) == [sample.record for sample in samples]
    assert list(read_members(path)) == [members_of(sample) for sample in samples]
    assert [set(members) for members in read_members(path, only="json")] == [{"json"}] * 2
    with pytest.raises(ValueError, match="2 samples, not 3"):
        read_records(path, 3)


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(OpenShards, "MOST", 2)
    samples = [[make_sample(4 * shard + n) for n in range(3)] for shard in range(4)]
    paths = [write_shard(tmp_path / f"{n}.tar", part) for n, part in enumerate(samples)]

    def opened():
        links = [Path("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
        return sum(link.is_symlink() and str(tmp_path) in os.readlink(link) for link in links)

    shards = OpenShards()
    for shard, number in ((0, 2), (1, 0), (0, 1), (3, 2), (2, 1), (0, 0), (3, 1)):
        expected = members_of(samples[shard][number])
        assert shards.read(paths[shard], 3, number) == expected
        assert shards.read(paths[shard], 3, number, ["json"]) == {"json": expected["json"]}
        assert opened() <= 2
    assert opened() == 2
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.read(paths[1], 3, 1) == members_of(samples[1][1]) and opened() == 3
    del shards, copy
    assert opened() == 0
    with pytest.raises(ValueError, match="3 samples, not 2"):
        OpenShards().read(paths[0], 2, 0)


def test_names_hold_the_number(tmp_path):
    assert shard_name(12) == "shard-000012.tar"
    assert shard_number(tmp_path / "shard-000012.tar.tmp") == 12


def renamed(path, old, new):
    """Call a field of the second sample otherwise."""
    data = path.read_bytes()
    place = data.index(old, data.index(b"00000006.json"))
    path.write_bytes(data[:place] + new + data[place + len(old) :])


def test_a_damaged_record_is_named(tmp_path):
    path = write_shard(tmp_path / "a.tar", [make_sample(index) for index in (5, 6)])
    renamed(path, b'"prompt"', b'"promqt"')
    why = r"a.tar is damaged: delete it .*\(sample 00000006: it has no field 'prompt'\)$"
    with pytest.raises(ValueError, match=why):
        read_records(path)
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        tar.write({"__key__": "00000009", "mask.png": b""})
    with pytest.raises(ValueError, match=r"a.tar is damaged.*\(sample 00000009: it has no json\)"):
        read_records(path)


def test_rejects_are_needed_until_the_dataset_is_complete(tmp_path):
    (tmp_path / "rejected").mkdir()
    path = write_shard(tmp_path / "rejected" / "a.tar", [make_sample(index) for index in (5, 6)])
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match="rejected/a.tar is damaged: delete it and run `predict`"):
        read_records(path)
    (tmp_path / "dataset.json").touch()
    with pytest.raises(ValueError, match="rejected/a.tar is damaged: .* it may be deleted"):
        read_records(path)
