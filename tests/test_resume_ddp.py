"""A training of two processes that is stopped inside an epoch goes on with the same batches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from test_datamodule import Recorder
from toy_data import data_module, live_stream, quiet_trainer, write_dataset
from writers import FORKS, preloaded

from ovseg.data.shards import ShardStream

BATCHES = 5
"""Of an epoch, on each process."""


def train(rank: int, port: int, folder: Path, stop: int, workers: int, again: bool, told) -> None:
    """Be one of two processes; tell the positions of its batches."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    saver = ModelCheckpoint(folder, filename="stop", every_n_train_steps=abs(stop))
    trainer = quiet_trainer(
        folder,
        enable_checkpointing=True,
        callbacks=[saver],
        max_epochs=3,
        max_steps=-1 if again else stop,
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        use_distributed_sampler=False,
    )
    data = data_module(4, train=ShardStream(str(folder.parent / "set")), num_workers=workers)
    checkpoint = folder / "stop.ckpt" if again else None
    module = Recorder()
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    told.put((rank, module.indices("train")))
    torch.distributed.destroy_process_group()


def run(folder: Path, stop: int, workers: int, again: bool = False) -> dict[int, list]:
    """Train with two processes; return what each was given."""
    with preloaded(__name__):
        told, port = FORKS.Queue(), find_free_network_port()
        each = [(rank, port, folder, stop, workers, again, told) for rank in (0, 1)]
        processes = [FORKS.Process(target=train, args=arguments) for arguments in each]
        for process in processes:
            process.start()
    given = dict(told.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(60)
    return given


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """42 samples: five batches of four for each of two processes, and two that are left over."""
    folder = tmp_path_factory.mktemp("resume")
    write_dataset(folder / "set", data_module(2, predict={"data": live_stream(42)}))
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_resume_inside_an_epoch(root, workers):
    straight = run(root / f"straight{workers}", -1, workers)
    assert [len(batches) for batches in straight.values()] == [3 * BATCHES] * 2
    assert straight[0] != straight[1]
    stop = BATCHES + 2
    first = run(root / f"stopped{workers}", stop, workers)
    assert {len(batches) for batches in first.values()} == {stop}
    second = run(root / f"stopped{workers}", stop, workers, again=True)
    assert {rank: first[rank] + second[rank] for rank in first} == straight
