"""The samples of a dataset in which everything was found."""

import pytest
import torch
from acme.backbone import ToyBackbone
from toy_data import data_module, live_stream, write_dataset

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
    assert len(bound(FoundStream(str(dataset), limit=1000))) == len(found.positions)
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
