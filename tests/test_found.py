"""The samples of a dataset in which everything was found."""

import json

import pytest
import torch
from acme.backbone import ToyBackbone
from toy_data import contents, data_module, live_stream, write_dataset

from ovseg.data import found as found_module
from ovseg.data.damage import DamagedSample
from ovseg.data.found import FoundStream
from ovseg.data.samplers import TestSampler, TrainSampler
from ovseg.data.shards import ShardStream
from ovseg.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    data = data_module(4, ToyBackbone(forget=0.4), predict={"data": live_stream(20)})
    return write_dataset(tmp_path_factory.mktemp("dataset"), data)


def bound(stream):
    stream.bind(Vocabulary.load("clipart", "1"))
    return stream


def test_only_samples_with_every_name_found(dataset):
    whole, found = bound(ShardStream(str(dataset))), bound(FoundStream(str(dataset)))
    samples = [whole.sample(position) for position in range(20)]
    kept = [sample.request.index for sample in samples if all(sample.found)]
    assert 2 < len(kept) < 20
    batch = found[range(len(found))]
    assert [request.index for request in batch.requests] == kept
    assert batch.indices.tolist() == list(range(len(kept)))
    assert torch.equal(batch.latents, whole[kept].latents)
    assert found.excluded == pytest.approx(1 - len(kept) / 20)


def test_limit_counts_what_is_left(dataset):
    found = bound(FoundStream(str(dataset), limit=2))
    assert len(found) == 2
    assert len(bound(FoundStream(str(dataset), limit=1000))) == len(
        bound(FoundStream(str(dataset)))
    )
    with pytest.raises(IndexError, match="position 2 is outside 0..1"):
        found.sample(2)
    with pytest.raises(ValueError, match="limit must be >= 1 or null, got 0"):
        FoundStream(str(dataset), limit=0)


def test_nothing_found_leaves_nothing(tmp_path):
    data = data_module(4, ToyBackbone(forget=1.0), predict={"data": live_stream(4)})
    write_dataset(tmp_path, data)
    empty = bound(FoundStream(str(tmp_path)))
    assert len(empty) == 0 and empty.excluded == 1.0
    assert list(TestSampler(empty, 4)) == []
    with pytest.raises(ValueError, match="0 training samples give no batch of 4"):
        TrainSampler(empty, 4, seed=0)


def copied(dataset, folder, change=lambda manifest: None):
    for name, data in contents(dataset).items():
        (folder / name).write_bytes(data)
    manifest = json.loads((folder / "dataset.json").read_text())
    change(manifest)
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return folder


def forget(manifest):
    for facts in manifest["shards"].values():
        del facts["all_found"]


def test_shards_are_read_when_they_are_needed(dataset, tmp_path, monkeypatch):
    read, seen = found_module.read_members, []
    monkeypatch.setattr(
        found_module,
        "read_members",
        lambda path, *more: seen.append(path.name) or read(path, *more),
    )
    stream = bound(FoundStream(str(dataset)))
    last = stream[[len(stream) - 1]]
    assert seen == ["shard-000004.tar"]
    every = stream[range(len(stream))]
    assert sorted(seen) == [f"shard-{number:06d}.tar" for number in range(5)]
    older = bound(FoundStream(str(copied(dataset, tmp_path, forget))))
    assert len(older) == len(stream) and older.excluded == stream.excluded
    assert older[range(len(older))].requests == every.requests
    assert last.requests == every.requests[-1:]


@pytest.mark.parametrize("change", [lambda manifest: None, forget], ids=["noted", "older"])
def test_damaged_ones_are_counted_as_elsewhere(dataset, tmp_path, change):
    """One sample has lost its JSON, another its picture; the bytes of the shard are as many."""
    folder, whole = copied(dataset, tmp_path, change), bound(FoundStream(str(dataset)))
    requests = whole[range(len(whole))].requests
    for position, part in ((0, "json"), (2, "image.png")):
        data = whole.members(position)[part]
        path = folder / whole._place(position)[0].name
        shard = path.read_bytes()
        assert shard.count(data) == 1
        path.write_bytes(shard.replace(data, b"x" * len(data)))
    strict = bound(FoundStream(str(folder)))
    assert len(strict) == len(whole)
    for position in (0, 2):
        with pytest.raises(DamagedSample, match=f"sample {position} of shard .*cannot be read"):
            strict[[position]]
    stream = bound(FoundStream(str(folder), max_damaged=0.5))
    assert stream.repeats and not strict.repeats
    with pytest.warns(UserWarning, match="the next good one is taken instead"):
        batch = stream[[0, 1, 2, 3]]
    assert batch.indices.tolist() == [1, 1, 3, 3]
    assert batch.requests == [requests[place] for place in (1, 1, 3, 3)]


def test_other_numbers_than_the_recorded_ones_are_refused(dataset, tmp_path):
    def change(manifest):
        manifest["shards"]["shard-000000.tar"]["all_found"] += 1

    stream = bound(FoundStream(str(copied(dataset, tmp_path, change))))
    with pytest.raises(ValueError, match="shard-000000.tar every name of .* dataset.json says of"):
        stream[[0]]
