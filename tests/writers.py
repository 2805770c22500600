"""Processes that write a toy dataset, and kill themselves where they are told to.

They are forked from a process that has imported everything, so that one starts in no time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from acme.backbone import ToyBackbone
from toy_data import data_module, live_stream, write_dataset

TOUCHING = ("open", "os.rename", "os.remove", "os.mkdir", "os.scandir", "fcntl.flock")
"""Python's audit events by which the work in a folder is counted."""

FORKS = multiprocessing.get_context("forkserver")


@contextmanager
def preloaded(module: str) -> Iterator[None]:
    """Let processes that are started inside be forked from one that has imported a module."""
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # the server's, once
    FORKS.set_forkserver_preload(["pytest", module])
    try:
        yield
    finally:
        os.environ["PYTHONPATH"] = before


def write(folder: Path, job: dict, stream: dict, kill_at: int | None = None) -> None:
    """Write a dataset, or a part of it.

    Args:
        folder: Of the dataset.
        job: More of the data module.
        stream: More of the stream.
        kill_at: Kill the process, as by SIGKILL, before it touches a file for this time.
    """
    torch.set_num_threads(1)
    data = data_module(2, ToyBackbone(), predict={"data": live_stream(**stream)}, **job)
    left = kill_at

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in TOUCHING and (event == "fcntl.flock" or str(folder) in str(arguments[0])):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at is not None:
        sys.addaudithook(count)
    write_dataset(folder, data)


def run(folder: Path, jobs: Sequence[dict], stream: dict, kill_at: Sequence[int | None]) -> int:
    """Write with several processes at once; return how many were killed.

    Args:
        folder: Of the dataset.
        jobs: For each process, more of its data module.
        stream: More of the stream.
        kill_at: For each process, when it is killed.
    """
    with preloaded(__name__):
        each = zip(jobs, kill_at, strict=True)
        processes = [FORKS.Process(target=write, args=(folder, j, stream, k)) for j, k in each]
        for process in processes:
            process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    assert set(codes) <= {0, -signal.SIGKILL}, codes
    return codes.count(-signal.SIGKILL)
