"""What writing costs beside sampling, and how long large folders take to start with.

    python benchmarks/writer.py --out runs/benchmarks/writer.json

Samples that are ready are written by the whole of `predict`, against encoding them alone. Then
folders of tiny shards: how long `predict` takes to find out what is left to make, without and with
a filter and a quota, and how long a stream takes to its first and to all of its samples. What was
kept of every shard is noted, as `predict` does; "recounted" is the quota without these notes.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from common import finish, interleave, parser, ratios, spread
from lightning.pytorch import Trainer
from shards import make_samples
from webdataset import TarWriter

from ovseg.callbacks.shard_writer import ShardWriter
from ovseg.cli import quiet
from ovseg.data.base import WritableStream
from ovseg.data.contents import COUNTS, describe_shards, note_yield
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.manifest import DATASET, prepare, write_json
from ovseg.data.shard_file import REJECTED, shard_name
from ovseg.data.shard_format import StoredSample, encode_sample
from ovseg.data.shards import ShardStream
from ovseg.data.sharing import claim, open_shards
from ovseg.data.yields import Yield
from ovseg.modules.dataset import DatasetModule
from ovseg.structures import Annotation, Batch
from ovseg.vocabulary import Vocabulary


class Ready(WritableStream):
    """Samples that were made before."""

    def __init__(self, samples: list[StoredSample], shard_size: int) -> None:
        self.samples, self.shard_size = samples, shard_size

    def describe(self) -> dict:
        """Return what a live stream would, as far as anybody asks for it."""
        facts = {"prompts": {}, "annotator": {}, "shard_size": self.shard_size}
        return {**facts, "size": len(self), "quota": None, "limit": None}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        samples = [self.samples[position] for position in positions]
        most = max(len(sample.found) for sample in samples)
        found = torch.zeros(len(samples), most, dtype=torch.bool)
        labels = torch.stack([torch.from_numpy(sample.mask) for sample in samples]).long()
        masks = torch.zeros(len(samples), most, *labels.shape[1:])
        return Batch(
            torch.tensor(positions),
            [sample.request for sample in samples],
            images=torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in samples]),
            labels=labels,
            found=found,
            latents=torch.stack([torch.from_numpy(sample.latent) for sample in samples]),
            timesteps=torch.tensor([1.0]),
            annotation=Annotation(masks, found.float(), found),
            position=self.place(positions),
        )


def write(samples: list[StoredSample], shard_size: int, batch: int) -> None:
    """Write samples by `predict`."""
    with tempfile.TemporaryDirectory() as folder:
        data = SyntheticDataModule(
            "clipart", batch_size=batch, predict={"data": Ready(samples, shard_size)}
        )
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ShardWriter(folder)],
        )
        trainer.predict(DatasetModule(), data, return_predictions=False)


def fill(folder: Path, sample: StoredSample, count: int) -> dict:
    """Write so many shards of one sample, and their rejects; return a request of them."""
    (folder / REJECTED).mkdir(parents=True)
    buffer = io.BytesIO()
    with TarWriter(buffer, encoder=False, mtime=0) as tar:
        tar.write(encode_sample(sample))
    counted = Yield.of([sample.record] * 2)  # one of them stands for the rejects
    for number in range(count):
        for part in (REJECTED, ""):
            (folder / part / shard_name(number)).write_bytes(buffer.getvalue())
        note_yield(folder, number, counted)
    words = Vocabulary.load("clipart")
    facts = {"name": words.name, "digest": words.digest, "split": words.split}
    keys = ["background", *(c.key for c in words.classes)]
    config = {
        "format": 2,
        "backbone": None,
        "annotator": {},
        "vocabulary": {**facts, "num_classes": words.num_classes, "keys": keys},
        "size": count + 1,
        "shard_size": 1,
        "rejected": None,
        "quota": None,
        "latents_digest": None,
    }
    return {"config": config, "environment": {}}


def start(folder: Path, request: dict) -> None:
    """Do what `predict` does before it makes its first sample."""
    config = request["config"]
    prepare(folder, request)
    left = open_shards(folder, config)
    shard = next(filter(None, (claim(folder, config, number) for number in left)))
    shard.drop()


def timed(work: Callable[[], object]) -> float:
    """Return seconds, to three digits."""
    begun = time.perf_counter()
    work()
    return float(f"{time.perf_counter() - begun:.3g}")


def starting(sample: StoredSample, count: int, folder: Path) -> dict[str, float]:
    """Return seconds until the first new sample of a dataset with so many finished shards."""
    request, seconds = fill(folder, sample, count), {}
    kinds = {"plain": {}, "filtered": {"rejected": "drop"}}
    kinds["quota"] = kinds["recounted"] = {"rejected": "drop", "quota": 10**6, "limit": 10**9}
    for kind, more in kinds.items():
        if kind == "recounted":
            (folder / COUNTS).unlink()
        asked = {**request, "config": {**request["config"], **more}}
        write_json(folder / "request.json", asked)
        seconds[kind] = timed(lambda asked=asked: start(folder, asked))
    shutil.rmtree(folder)
    return seconds


def reading(sample: StoredSample, count: int, folder: Path) -> dict[str, float]:
    """Return seconds of a stream of so many shards to its first samples, and to one of each."""
    request = fill(folder, sample, count)
    write_json(folder / DATASET, describe_shards(folder, request, count))

    def read(positions: Sequence[int]) -> None:
        stream = ShardStream(str(folder))
        stream.bind(Vocabulary.load("clipart"))
        for position in positions:
            stream[[position]]

    last = [count - 1]
    seconds = {"first": timed(lambda: read(last)), "all": timed(lambda: read(range(count)))}
    shutil.rmtree(folder)
    return seconds


def main(argv: list[str] | None = None) -> dict:
    """Run the benchmark."""
    made = parser(__doc__.splitlines()[0], repeats=5)
    made.add_argument("--samples", type=int, default=512)
    made.add_argument("--shard-size", type=int, default=128)
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--size", type=int, default=64, help="pixels of a side")
    made.add_argument("--finished", type=int, default=10_000, help="shards that are there already")
    made.add_argument("--stored", type=int, default=1_000, help="shards of a dataset that is read")
    arguments = made.parse_args(argv)
    quiet()
    samples = make_samples(arguments.samples, arguments.size, Vocabulary.load("clipart"))
    cases = {
        "predict": lambda: write(samples, arguments.shard_size, arguments.batch),
        "encode": lambda: [encode_sample(sample) for sample in samples],
    }
    seconds = interleave(cases, arguments.repeats)
    with tempfile.TemporaryDirectory() as name:
        before = starting(samples[0], arguments.finished, Path(name) / "started")
        stored = reading(samples[0], arguments.stored, Path(name) / "stored")
    result = {
        "samples": arguments.samples,
        "size": arguments.size,
        "samples_per_second": {
            case: spread([arguments.samples / time for time in times])
            for case, times in seconds.items()
        },
        "predict_over_encode": ratios(seconds["predict"], seconds["encode"]),
        "finished_shards": arguments.finished,
        "seconds_to_the_first_new_sample": before,
        "stored_shards": arguments.stored,
        "seconds_of_reading": stored,
    }
    return finish("writer", result, "cpu", arguments.out)


if __name__ == "__main__":
    main()
