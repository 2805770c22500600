"""Two real processes (gloo, CPU) against one: `predict`, `fit` and `test` through the command line.

NCCL is not measured here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from toy_data import contents

from ovseg.__main__ import main

ROOT = Path(__file__).parents[1]
DDP = ROOT / "configs" / "trainer" / "ddp.yaml"
SIZE, SHARD = 20, 8  # shards 0 and 2 go to rank 0, shard 1 to rank 1


def start(verb: str, config: Path, *arguments: str) -> subprocess.Popen:
    """Start ``python -m ovseg`` with two processes in a session of its own."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "plugins")])
    return subprocess.Popen(
        [sys.executable, "-m", "ovseg", verb, "-c", config, "-c", DDP, *arguments],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=config.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(verb: str, config: Path, *arguments: str) -> str:
    """Run to the end; return what was printed."""
    with start(verb, config, *arguments) as process:
        try:
            printed, _ = process.communicate(timeout=500)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, printed
    return printed


def alone(verb: str, config: Path, *arguments: str) -> None:
    """Run with one process, this one."""
    before = torch.get_num_threads()
    try:
        assert main([verb, "-c", str(config), *arguments]) == 0
    finally:
        torch.set_num_threads(before)


def named(class_path: str, **init_args) -> dict:
    return {"class_path": class_path, "init_args": init_args}


def live(seed: int, **arguments) -> dict:
    """Return the configuration of a live stream."""
    settings = {
        "prompts": prompts("all"),
        "annotator": named("acme.annotator.ColorAnnotator", classes="all"),
        "size": SIZE,
        "seed": seed,
        "shard_size": SHARD,
    }
    return named("ovseg.data.live.LiveStream", **{**settings, **arguments})


def prompts(classes: str | list[str]) -> dict:
    """Return the configuration of prompts."""
    shares = {1: 1, 2: 3}
    return named("ovseg.data.prompts.TemplatePrompts", objects=shares, classes=classes)


def configure(path: Path, model: dict, callbacks: list[dict] = (), delay: float = 0.0, **streams):
    """Write a configuration of toy parts; batches of 3, so that 20 samples are 7 batches."""
    trainer = {
        "accelerator": "cpu",
        "default_root_dir": str(path.parent),
        "enable_progress_bar": False,
        "logger": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
        "max_epochs": 2,
    }
    backbone = named("acme.backbone.ToyBackbone", forget=0.1, delay=delay)
    settings = {"vocabulary": "clipart", "batch_size": 3, "threads": 1, "backbone": backbone}
    data = named("ovseg.data.datamodule.SyntheticDataModule", **settings, **streams)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"trainer": trainer, "model": model, "data": data}))
    return path


def predict_config(folder: Path, delay: float = 0.0, **arguments) -> Path:
    writer = named("ovseg.callbacks.shard_writer.ShardWriter", output=str(folder / "set"))
    module = named("ovseg.modules.dataset.DatasetModule")
    return configure(
        folder / "predict.yaml", module, [writer], delay, predict={"data": live(0, **arguments)}
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """The dataset as one process writes it."""
    folder = tmp_path_factory.mktemp("one")
    alone("predict", predict_config(folder))
    return folder / "set"


def test_predict_killed_and_resumed_gives_the_bytes_of_one_process(dataset, tmp_path):
    output = tmp_path / "set"
    first_two = [output / "shard-000000.tar", output / "shard-000001.tar"]
    with start("predict", predict_config(tmp_path, delay=1.0)) as process:
        deadline = time.monotonic() + 500
        while not all(path.is_file() for path in first_two):
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    left = contents(output)
    assert "shard-000002.tar" not in left and "dataset.json" not in left
    # one shard is pending, for two processes
    run("predict", predict_config(tmp_path))
    assert contents(output) == contents(dataset)


def test_a_filter_and_a_quota_give_the_bytes_of_one_process(tmp_path):
    """Two processes make one shard too many, are killed, and go on."""
    bounds = named("ovseg.quality.QualityFilter", min_area=0.2)
    asked = {"size": 4, "shard_size": 4, "filter": bounds, "quota": 6, "limit": 40}
    asked["prompts"] = prompts(["house", "fish", "car"])
    alone("predict", predict_config(tmp_path / "one", **asked))
    expected = contents(tmp_path / "one" / "set")
    shards = [name for name in expected if name.startswith("shard-")]
    assert len(shards) % 2 == 0  # the first alone, then two by two: one is not needed
    output = tmp_path / "two" / "set"
    with start("predict", predict_config(tmp_path / "two", delay=1.0, **asked)) as process:
        deadline = time.monotonic() + 500
        while not (output / "shard-000001.tar").is_file():
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert "dataset.json" not in contents(output)
    printed = run("predict", predict_config(tmp_path / "two", **asked))
    assert contents(output) == expected
    assert printed.count("samples kept") == 1


def grounding(folder: Path, dataset: Path) -> tuple[dict, dict]:
    grounder = named("acme.grounder.NearnessGrounder")
    optimizer = named("torch.optim.Adam", lr=0.05)
    model = named(
        "ovseg.modules.grounding.GroundingModule",
        grounder=grounder,
        optimizer=optimizer,
        output=str(folder / "grounder"),
    )
    stored = named("ovseg.data.shards.ShardStream", path=str(dataset))
    return model, {"train": live(1), "val": {"a": stored}, "test": {"a": stored, "b": live(2)}}


def segmentation(folder: Path, dataset: Path) -> tuple[dict, dict]:
    model = named(
        "ovseg.modules.segmentation.SegmentationModule",
        segmenter=named("acme.segmenter.PixelSegmenter"),
        optimizer=named("torch.optim.Adam", lr=0.01),
    )
    stored = named("ovseg.data.shards.ShardStream", path=str(dataset))
    return model, {"train": stored, "test": {"stored": stored}}


@pytest.mark.parametrize("stage, fit", [(grounding, run), (segmentation, alone)])
def test_scores_of_two_processes_are_those_of_one(dataset, tmp_path, stage, fit):
    model, streams = stage(tmp_path, dataset)
    fit("fit", configure(tmp_path / "fit.yaml", model, **streams))
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    results, images = [], []
    for world in (1, 2):
        dump = named("acme.callbacks.DumpCounts", folder=str(tmp_path / f"test{world}"))
        mistakes = [named("ovseg.callbacks.mistakes.TestMistakes", worst=5)]
        callbacks = [dump, *(mistakes if stage is segmentation else [])]
        config = configure(tmp_path / "test.yaml", model, callbacks, **streams)
        printed = (alone if world == 1 else run)("test", config, f"--ckpt_path={checkpoint}")
        if world == 2:  # by one of them
            titles = [printed.count(t) for t in ("mean over images", "IoU of each class")]
            assert titles == ([0, 1] if stage is segmentation else [1, 0])
        results.append(json.loads((tmp_path / "results.json").read_text()))
        if stage is segmentation:
            with np.load(tmp_path / "results_images.npz", allow_pickle=False) as arrays:
                images.append({name: arrays[name].tolist() for name in arrays})
            names = ("confusion_stored.csv", "confusion_stored.png", "worst_stored.html")
            images[-1] |= {name: (tmp_path / name).read_bytes() for name in names}
    assert results[0] == results[1]
    if images:  # every image once, whoever scored it
        assert images[0] == images[1]
        assert images[0]["stored/indices"] == list(range(SIZE))
    expected = json.loads((tmp_path / "test1" / "counts_0.json").read_text())
    parts = [json.loads((tmp_path / "test2" / f"counts_{r}.json").read_text()) for r in (0, 1)]
    assert expected.keys() == parts[0].keys() == parts[1].keys() and expected
    for name, counts in expected.items():
        shares = [np.asarray(part[name]) for part in parts]
        assert np.array_equal(np.asarray(counts), sum(shares)), name
    areas = [np.asarray(part[name]).sum() for part in parts for name in part if "areas" in name]
    assert np.count_nonzero(areas) >= 2  # both had something to count


@pytest.mark.parametrize("fit", [alone, run])
def test_then_test_scores_the_grounder_that_fit_writes(dataset, tmp_path, fit):
    """Seven steps, checkpoints of every fourth; the threshold of the sixth."""
    model, streams = grounding(tmp_path, dataset)
    model["init_args"]["calibrate"] = True
    keep = {"dirpath": str(tmp_path / "kept"), "every_n_train_steps": 4, "save_last": True}
    saver = named("lightning.pytorch.callbacks.ModelCheckpoint", **keep)
    config = configure(tmp_path / "fit.yaml", model, [saver], **streams)
    steps = ["--trainer.max_steps=7", "--trainer.val_check_interval=2"]
    steps += ["--trainer.check_val_every_n_epoch=null", "--trainer.max_epochs=-1"]
    fit("fit", config, *steps, "--then_test", "true")
    results = (tmp_path / "results.json").read_text()
    model["init_args"].update(start=str(tmp_path / "grounder"), output=None)
    alone("test", configure(tmp_path / "test.yaml", model, **streams))
    assert (tmp_path / "results.json").read_text() == results


GLOO_AT_WORK = """
import sys, torch
import ovseg.cli
group = {"init_method": f"file://{sys.argv[1]}", "rank": 0, "world_size": 1}
torch.distributed.init_process_group("gloo", **group)
for _ in range(5000):
    torch.distributed.broadcast(torch.ones(1), 0, async_op=True)
"""


def test_a_process_ends_while_gloo_is_still_at_work(tmp_path):
    """Without leaving the process group it aborts, nearly always."""
    command = [sys.executable, "-c", GLOO_AT_WORK, tmp_path / "store"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
