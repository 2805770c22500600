"""Damaged samples: refused, or left out of a training and counted."""

import re
import warnings

import numpy as np
import pytest
import torch
from acme.backbone import ToyBackbone
from test_datamodule import Recorder
from test_shards import dataset, open_stream, rewrite  # noqa: F401 - a fixture
from torch.utils.data import DataLoader, Dataset
from toy_data import data_module, quiet_trainer

from ovseg.data.damage import ALWAYS, DamagedSample, Tolerance
from ovseg.data.shard_format import decode_sample
from ovseg.data.shards import ShardStream

BREAKS = {
    "no PNG": {"image.png": lambda data: b"broken"},
    "a cut PNG": {"mask.png": lambda data: data[: len(data) // 2]},
    "a changed PNG": {"image.png": lambda data: data[:20] + b"\xff" + data[21:]},
    "no JSON": {"json": lambda data: data[:-5]},
    "other JSON": {"json": lambda data: b"[1, 2]"},
    "a cut array": {"latent.npy": lambda data: data[:-4]},
    "no array": {"latent.npy": lambda data: b""},
}


def broken(dataset, folder, which, kind="no PNG"):  # noqa: F811 - the fixture
    """Copy the first shard's four samples, some of them broken."""

    def change(members):
        if int(members["__key__"]) in which:
            for name, damage in BREAKS[kind].items():
                members[name] = damage(members[name])

    rewrite(dataset, folder, change)
    return folder


@pytest.mark.parametrize("kind", BREAKS)
def test_the_next_good_sample_stands_in(dataset, tmp_path, kind):  # noqa: F811
    whole = open_stream(dataset)
    folder = broken(dataset, tmp_path, {1, 3}, kind)
    strict, stream = open_stream(folder), open_stream(folder, max_damaged=0.5)
    with pytest.raises(ValueError, match="sample 1 of shard .*shard-000000.tar: it cannot be read"):
        strict[[0, 1]]
    with pytest.warns(UserWarning) as caught:
        batch = stream[[3, 1, 0, 2]]
    said = [str(w.message) for w in caught]
    for count, (line, position) in enumerate(zip(said, (3, 1), strict=True), start=1):
        place = f"sample {position} of shard {folder / 'shard-000000.tar'}: it cannot be read"
        end = f"the next good one is taken instead ({count} damaged so far)"
        assert line.startswith(place) and line.endswith(end)
    assert batch.indices.tolist() == [0, 2, 0, 2]  # after the last comes the first
    assert torch.equal(batch.images, whole[[0, 2, 0, 2]].images)
    with warnings.catch_warnings():  # it is said once
        warnings.simplefilter("error")
        assert stream[[1]].indices.tolist() == [2]
    with pytest.raises(ValueError, match="sample 3 of shard"):
        stream.sample(3)


def test_features_are_kept_under_the_sample_they_are_of(dataset, tmp_path):  # noqa: F811
    folder, backbone = broken(dataset, tmp_path, {1}), ToyBackbone()
    stream = open_stream(folder, cache=True, max_damaged=0.5)
    with pytest.warns(UserWarning, match="sample 1 of shard"):
        first = stream.complete(stream[[1, 2]], backbone)
    again = stream.complete(stream[[2, 0]], backbone)
    expected = open_stream(dataset)
    expected = expected.complete(expected[[2, 2, 2, 0]], backbone)
    for tap, maps in expected.features.maps.items():
        found = torch.cat([first.features.maps[tap], again.features.maps[tap]])
        torch.testing.assert_close(found, maps)


def test_more_than_the_share_stops():
    def read(position):
        if position % 20 == 7:
            raise DamagedSample(f"sample {position}")
        return position

    tolerance = Tolerance(0.06)  # 5% are damaged
    with pytest.warns(UserWarning) as caught:
        got = [tolerance.read(position, 2000, read) for position in range(2000)]
    assert len(caught) == 100
    assert got == [(p + (p % 20 == 7),) * 2 for p in range(2000)]
    tolerance = Tolerance(0.04)
    # one in 20 is damaged and its stand-in is read too, so a tenth is within 4% only at first
    with pytest.warns(UserWarning) as caught, pytest.raises(ValueError) as stopped:
        for position in range(2000):
            tolerance.read(position, 2000, read)
    assert len(caught) == ALWAYS
    assert re.fullmatch(
        r"11 of 218 samples are damaged, max_damaged allows 0.04 of them: delete such shards and "
        r"run `predict` again, which makes them anew; the last was sample 207",
        str(stopped.value),
    )


class Spoilt(Dataset):
    """A hundred samples, every fifth damaged."""

    def __init__(self, share):
        self.tolerance = Tolerance(share)
        self.tolerance.begin(100)

    def __len__(self):
        return 100

    def __getitem__(self, position):
        def read(other):
            if other % 5 == 0:
                raise DamagedSample(f"sample {other}")
            return other

        return self.tolerance.read(position, 100, read)[1]


@pytest.mark.filterwarnings("ignore:sample .* the next good one is taken:UserWarning")
def test_workers_and_epochs_count_together():
    """Each of two workers meets ten damaged samples, which it might by itself."""
    with pytest.raises(ValueError, match="1. of .. samples are damaged, max_damaged allows 0.1"):
        list(DataLoader(Spoilt(0.1), batch_size=None, num_workers=2))
    spoilt = Spoilt(0.5)
    loader = DataLoader(spoilt, batch_size=None, num_workers=2)
    for _ in range(3):
        assert sorted(set(range(100)) - set(loader)) == list(range(0, 100, 5))
    assert int(spoilt.tolerance._damaged.sum()) == 20  # not once more in every epoch
    half = Spoilt(0.1)
    for _ in range(3):
        assert len([half[position] for position in range(50)]) == 50


def test_nothing_good_is_left():
    def read(position):
        raise DamagedSample(f"sample {position}")

    with pytest.warns(UserWarning), pytest.raises(ValueError, match="all 4 samples are damaged"):
        Tolerance(0.5).read(2, 4, read)
    with pytest.raises(DamagedSample, match="sample 2; delete such shards .* or allow some"):
        Tolerance(0.0).read(2, 4, read)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"max_damaged is a share .* in \[0, 1\), got"):
            ShardStream("nowhere", max_damaged=share)


def test_training_goes_on_and_scoring_is_refused(dataset, tmp_path):  # noqa: F811
    folder = broken(dataset, tmp_path, {2})
    stream = {"path": str(folder), "max_damaged": 0.5}
    module = Recorder()
    with pytest.warns(UserWarning, match="sample 2 of shard"):
        data = data_module(2, train=ShardStream(**stream))
        quiet_trainer(tmp_path, max_epochs=1).fit(module, data)
    assert sorted(sum((b for _, b in module.indices("train")), [])) == [0, 1, 3, 3]
    data = data_module(2, test={"stored": ShardStream(**stream)})
    with pytest.raises(ValueError, match="stream 'stored' may hold a sample twice.*max_damaged"):
        quiet_trainer(tmp_path).test(module, data, verbose=False)


def test_whatever_is_broken_is_a_value_error(dataset):  # noqa: F811
    members = open_stream(dataset).members(0)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        name = random.choice(sorted(members))
        data = bytearray(members[name])
        if random.random() < 0.3:
            del data[random.integers(len(data)) :]
        else:
            for place in random.integers(len(data), size=random.integers(1, 5)):
                data[place] = random.integers(256)
        try:
            decode_sample({**members, name: bytes(data)})
        except ValueError:
            refused += 1
    assert refused > 200
