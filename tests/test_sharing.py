"""Several processes and jobs in one folder: who makes what, and the bytes of one process."""

import random

import pytest
from acme.backbone import ToyBackbone
from toy_data import contents, data_module, live_stream, write_dataset
from writers import run

from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.manifest import prepare
from ovseg.data.shard_writing import Shard
from ovseg.data.sharing import claim, open_shards, publish, ranges, what_is_left

SIZED = {"size": 59, "shard_size": 2}
"""30 shards, the last with one sample."""

QUOTA = {"size": 6, "shard_size": 2, "quota": 5, "limit": 80, "classes": ["house", "fish", "car"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The bytes of one process that nobody kills."""
    streams = {"sized": SIZED, "quota": QUOTA}
    folders = {name: tmp_path_factory.mktemp("alone") / name for name in streams}
    for name, stream in streams.items():
        data = data_module(2, ToyBackbone(), predict={"data": live_stream(**stream)}, threads=1)
        write_dataset(folders[name], data)
    return {name: contents(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_that_are_killed_give_the_bytes_of_one(alone, tmp_path, processes):
    """Twenty kills at seeded moments, between any two touches of a file."""
    moments, kills = random.Random(processes), 0
    nobody = [{}] * processes
    while kills < 20:
        at = [moments.randrange(1, 60) for _ in nobody]
        killed = run(tmp_path / "set", nobody, SIZED, at)
        kills += killed
        if killed < processes:  # it was complete
            assert contents(tmp_path / "set") == alone["sized"]
            (tmp_path / "set" / "shard-000017.tar").unlink()
    run(tmp_path / "set", nobody, SIZED, [None] * processes)
    assert contents(tmp_path / "set") == alone["sized"]
