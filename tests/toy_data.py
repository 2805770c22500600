"""What several tests build on: streams of the toy backbone, and a dataset written from one."""

from __future__ import annotations

from pathlib import Path

from acme.annotator import ColorAnnotator
from acme.backbone import ToyBackbone
from lightning.pytorch import Trainer

from ovseg.callbacks.shard_writer import ShardWriter
from ovseg.cli import quiet
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.live import LiveStream
from ovseg.data.prompts import TemplatePrompts
from ovseg.modules.dataset import DatasetModule
from ovseg.structures import Entity, Request


def live_stream(size: int = 10, classes: str = "all", **arguments) -> LiveStream:
    """Return a stream of one- and two-object prompts; shards of 4."""
    prompts = TemplatePrompts({1: 1, 2: 1}, classes)
    annotator = ColorAnnotator("all", instances=True)
    return LiveStream(prompts, annotator, size, **{"shard_size": 4, **arguments})


def data_module(batch_size: int = 3, backbone=None, **arguments) -> SyntheticDataModule:
    """Return a DataModule of the toy backbone."""
    backbone = backbone or ToyBackbone(forget=0.2)
    return SyntheticDataModule("clipart", "1", batch_size, backbone, **arguments)


def quiet_trainer(folder: Path, **arguments) -> Trainer:
    """Return a Trainer on the CPU that prints, logs and saves nothing by itself."""
    quiet()
    silent = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", default_root_dir=folder, **{**silent, **arguments})


def write_dataset(
    folder: Path, data: SyntheticDataModule | None = None, soft: bool = False, **options
) -> Path:
    """Run `predict` in this process, as often as it takes; ten samples in three shards by default.

    Args:
        folder: Output.
        data: Has one stream.
        soft: Store soft masks.
        options: More of `ShardWriter`.
    """
    data = data or data_module(predict={"data": live_stream()})
    writer = ShardWriter(str(folder), soft, **options)
    trainer = quiet_trainer(folder, callbacks=[writer])
    trainer.predict(DatasetModule(), data, return_predictions=False)
    while writer.wants_more:
        trainer.predict(DatasetModule(), data, return_predictions=False)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a folder, by its path inside."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def request(index: int, prompt: str, *names: str) -> Request:
    """Return a request whose names stand in the prompt; its seed follows the index."""
    spans = [(prompt.index(name), prompt.index(name) + len(name)) for name in names]
    entities = tuple(Entity(i + 1, n, s) for i, (n, s) in enumerate(zip(names, spans, strict=True)))
    return Request(index, 100 + index, prompt, entities)
