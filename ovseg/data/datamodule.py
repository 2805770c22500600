"""The one DataModule: streams, a frozen backbone, and which batch goes where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from threading import Lock

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

import ovseg
from ovseg.backbones.base import DiffusionBackbone
from ovseg.data.ahead import Ahead
from ovseg.data.base import Stream, WritableStream
from ovseg.data.loader import TrainLoader
from ovseg.data.manifest import deciding
from ovseg.data.prompts import Prompts
from ovseg.data.samplers import BatchSampler, ShardSampler, TestSampler, TrainSampler
from ovseg.structures import Batch, FeatureSpec
from ovseg.vocabulary import Vocabulary

VERSIONED = ("torch", "numpy", "pillow", "webdataset", "diffusers", "transformers")
"""Packages that have a say in the bytes of a dataset, beside ovseg."""


class SyntheticDataModule(LightningDataModule):
    """Feed any of the four stages from live, stored or real streams.

    Batches come from the streams on CPU and are completed on the device, without gradients: a live
    stream samples and annotates there; with a backbone every batch gets entities and features. The
    backbone and the annotators are moved, but never saved, wrapped or trained.

    Args:
        vocabulary: Name of a shipped vocabulary or path of a YAML file.
        split: Its split into seen and unseen classes.
        batch_size: Samples per batch and process.
        backbone: Makes images and features; None if nothing is live and nobody needs features.
        train: Stream of `fit`.
        val: Named streams of validation.
        test: Named streams of `test`, scored apart.
        predict: Named streams that `predict` writes.
        num_workers: Processes per loader.
        seed: Seed of the training order.
        threads: Threads of torch per process; None leaves torch's own number. The last bits of a
            generated sample depend on it.
        job_index: Number of this job in an array of jobs that `predict` one dataset, from 0.
        num_jobs: Number of jobs in the array; each makes its own share of the shards.
        ahead: On a GPU, make the next training batch while the model learns from the one before;
            that takes the memory of one batch more.

    Raises:
        ValueError: If a number is not positive or job_index not in the array, or the vocabulary or
            split is unknown.
    """

    allow_zero_length_dataloader_with_multiple_devices = True  # a test column may be empty

    def __init__(
        self,
        vocabulary: str,
        split: str | int = "1",
        batch_size: int = 16,
        backbone: DiffusionBackbone | None = None,
        train: Stream | None = None,
        val: dict[str, Stream] | None = None,
        test: dict[str, Stream] | None = None,
        predict: dict[str, WritableStream] | None = None,
        num_workers: int = 0,
        seed: int = 0,
        threads: int | None = None,
        job_index: int = 0,
        num_jobs: int = 1,
        ahead: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be >= 1 or null, got {threads}")
        if not 0 <= job_index < num_jobs:
            raise ValueError(
                f"job_index must be one of the num_jobs numbers from 0, got job_index {job_index} "
                f"and num_jobs {num_jobs}: an array of {num_jobs} starts at 0"
            )
        self.vocabulary_name = vocabulary
        self._vocabulary = Vocabulary.load(vocabulary, str(split))
        self.batch_size = batch_size
        self.backbone = backbone
        self.train, self.val, self.test, self.predict = train, val or {}, test or {}, predict or {}
        self.num_workers = num_workers
        self.seed = seed
        self.threads = threads
        self.job_index, self.num_jobs = job_index, num_jobs
        self.ahead = ahead
        self._ahead: Ahead | None = None
        self._one_at_a_time = Lock()  # validation may come while a training batch is made
        self.pending: dict[str, Sequence[int]] = {}
        """Shards of each stream that `predict` is to make; by default the job's share of all (a
        writer sets it)."""
        self.claim: Callable[[int, int], bool] = lambda place, shard: True
        """Asked for a shard of a stream, given by its place, before it is made; if it says no, the
        shard is left out (a writer sets it)."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes."""
        return self._vocabulary

    @property
    def feature_spec(self) -> FeatureSpec | None:
        """Shapes of the backbone's features."""
        return self.backbone.feature_spec if self.backbone is not None else None

    @property
    def text_width(self) -> int | None:
        """Width of the backbone's text embeddings."""
        return self.backbone.text_width if self.backbone is not None else None

    def setup(self, stage: str) -> None:
        """Bind the stage's streams to the classes; move what they need to the device.

        Raises:
            ValueError: If the stage has no stream.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if stage == "fit" and not self.val:
            self.trainer.limit_val_batches = 0  # Lightning warns of an empty list of loaders
        device = self.trainer.strategy.root_device
        for stream in self._streams(TrainerFn(stage).value):
            stream.bind(self.vocabulary)
            stream.check(self.backbone)
            stream.to(device)
        if self.backbone is not None:
            self.backbone.to(device).eval().requires_grad_(False)
        self._ahead = Ahead(device) if stage == "fit" and self._makes_ahead else None

    def teardown(self, stage: str) -> None:
        """Let what comes next wait for a batch that nobody has asked for."""
        if self._ahead is not None:
            self._ahead.end()

    def train_dataloader(self) -> TrainLoader:
        """Return shuffled full batches."""
        sampler = TrainSampler(self.train, self.batch_size, self.seed, *self._place())
        complete = partial(self._complete, self.train)
        ahead = None if self._ahead is None else partial(self._ahead.each, complete)
        return TrainLoader(self.train, ahead, sampler=sampler, num_workers=self.num_workers)

    def val_dataloader(self) -> list[DataLoader]:
        """Return one loader per validation stream, in order."""
        return self._test_loaders(self.val, even=self.trainer.state.fn == "fit")

    def test_dataloader(self) -> list[DataLoader]:
        """Return one loader per test stream, in order."""
        return self._test_loaders(self.test, even=False)

    def predict_dataloader(self) -> list[DataLoader]:
        """Return the batches of the pending shards, one loader per stream, in order."""
        return [self._shard_loader(place, name) for place, name in enumerate(self.predict)]

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch that was not made there."""
        if self.trainer.training and self._ahead is not None:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Complete a batch on the device, unless that was done ahead."""
        if self._ahead is None:
            return self._complete(self._source(dataloader_idx), batch)
        if self.trainer.training:
            return batch
        return self._ahead.now(partial(self._complete, self._source(dataloader_idx)), batch)

    def describe(self, name: str) -> dict:
        """Return what decides every byte of the dataset that `predict` writes of one stream.

        Args:
            name: The stream's name.

        Returns:
            JSON-ready ``config`` (the same for everybody) and ``environment`` (device, threads,
            versions).
        """
        stream, vocabulary = self.predict[name], self.vocabulary
        facts = stream.describe()
        config = {
            "format": 2,
            "vocabulary": {
                "name": vocabulary.name,
                "digest": vocabulary.digest,
                "words_digest": vocabulary.words_digest,
                "split": vocabulary.split,
                "unseen": [vocabulary[i].key for i in vocabulary.unseen],
                "num_classes": vocabulary.num_classes,
                "keys": ["background", *(c.key for c in vocabulary.classes)],
            },
            "requested_classes": facts["annotator"].get("requested_classes"),
            **facts,
            "quota_classes": _quota_classes(stream, facts, vocabulary),
            "filter": stream.filter.describe() if stream.filter is not None else None,
            "batch_size": min(self.batch_size, stream.shard_size),
            **_latents(self.backbone),
            "backbone": deciding(self.backbone.describe()) if self.backbone is not None else None,
        }
        versions = {name: found for name in VERSIONED if (found := _version(name))}
        environment = {
            "device": _device_name(self.trainer.strategy.root_device),
            "threads": torch.get_num_threads(),
            "versions": {"ovseg": ovseg.__version__, **versions},
        }
        return {"config": config, "environment": environment}

    def _streams(self, stage: str) -> list[Stream]:
        if stage == "fit":
            needed, streams = "train", [self.train, *self.val.values()]
        else:
            needed = "val" if stage == "validate" else stage
            streams = list(getattr(self, needed).values()) or [None]
        if streams[0] is None:
            raise ValueError(f"`{stage}` needs a stream: set data.{needed}")
        return streams

    @property
    def _makes_ahead(self) -> bool:
        """Whether training batches are completed before they are due."""
        device = self.trainer.strategy.root_device
        return self.ahead and self.backbone is not None and device.type == "cuda"

    def _complete(self, stream: Stream, batch: Batch) -> Batch:
        """Complete a batch on its device; in one thread at a time, for a backbone has hooks."""
        with self._one_at_a_time, torch.no_grad():
            return stream.complete(batch, self.backbone)

    def _source(self, dataloader_idx: int) -> Stream:
        """Return the stream that the current batch came from."""
        trainer = self.trainer
        if trainer.training:
            return self.train
        named = self.predict if trainer.predicting else self.test if trainer.testing else self.val
        return list(named.values())[dataloader_idx]

    def _place(self) -> tuple[int, int]:
        return self.trainer.global_rank, self.trainer.world_size

    def _test_loaders(self, streams: dict[str, Stream], even: bool) -> list[DataLoader]:
        if repeating := [name for name, stream in streams.items() if stream.repeats]:
            raise ValueError(
                f"stream {repeating[0]!r} may hold a sample twice, and a score would count it "
                "twice: leave out max_damaged, or the weights of a mixture"
            )
        samplers = (TestSampler(s, self.batch_size, even, *self._place()) for s in streams.values())
        return [self._loader(sampler.dataset, sampler) for sampler in samplers]

    def _shard_loader(self, place: int, name: str) -> DataLoader:
        stream = self.predict[name]
        share = range(self.job_index, stream.num_shards, self.num_jobs)
        numbers = self.pending.get(name, share)
        claim = partial(self.claim, place)
        sizes = self.batch_size, stream.shard_size
        sampler = ShardSampler(stream, *sizes, numbers, *self._place(), claim=claim)
        return self._loader(stream, sampler)

    def _loader(self, stream: Stream, sampler: BatchSampler) -> DataLoader:
        return DataLoader(stream, batch_size=None, sampler=sampler, num_workers=self.num_workers)


def _quota_classes(stream: WritableStream, facts: dict, vocabulary: Vocabulary) -> list[int] | None:
    """Return which classes a quota waits for; None if there is none, or it is not known."""
    prompts = getattr(stream, "prompts", None)
    if facts.get("quota") is None or not isinstance(prompts, Prompts):
        return None
    named, asked = prompts.named_classes(vocabulary), facts["annotator"].get("requested_classes")
    return sorted(named & set(named if asked is None else asked)) if named is not None else None


def _latents(backbone: DiffusionBackbone | None) -> dict:
    """Return what says who can read the latents that a backbone has made."""
    if backbone is None:
        return {"latents_digest": None, "timesteps": None}
    timesteps = [round(float(t), 3) for t in backbone.timesteps]
    return {"latents_digest": backbone.latents_digest, "timesteps": timesteps}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
