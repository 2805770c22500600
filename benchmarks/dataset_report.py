"""Time, memory and size of `ovseg report` on a large dataset.

    python benchmarks/dataset_report.py --samples 100000 --out runs/benchmarks/dataset_report.json

The dataset is written first: drawn scenes of two objects, moved and shaded, 4,000 different images
in turn, with scores and areas drawn at random. The report is a process of its own; its peak memory
counts what the process that started it held at that moment, so it is an upper bound.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import finish, parser
from shards import make_samples
from tqdm import tqdm
from webdataset import TarWriter

from ovseg.data.manifest import DATASET, write_json
from ovseg.data.shard_file import sha256_of, shard_name
from ovseg.data.shard_format import StoredSample, encode_record, encode_sample
from ovseg.vocabulary import Vocabulary

VARIANTS, SCENES = 4000, 250
"""Different images, and the drawn scenes that they are made of."""


def varied(count: int, size: int, vocabulary: Vocabulary) -> list[StoredSample]:
    """Return samples, each a drawn scene that is moved and shaded in another way."""
    random = np.random.default_rng(0)
    scenes = make_samples(min(SCENES, count), size, vocabulary)
    samples = []
    for index in range(count):
        scene, shift = scenes[index % len(scenes)], tuple(random.integers(0, size, 2))
        shade = np.add.outer(random.uniform(-30, 30, size), random.uniform(-30, 30, size))
        image = np.roll(scene.image, shift, (0, 1)) + shade[..., None]
        mask = np.roll(scene.mask, shift, (0, 1))
        samples.append(replace(scene, image=image.clip(0, 255).astype(np.uint8), mask=mask))
    return samples


def write(folder: Path, count: int, size: int, shard_size: int) -> None:
    """Write samples as `predict` does: images in turn, each time with other facts."""
    random, vocabulary = np.random.default_rng(1), Vocabulary.load("clipart")
    samples = varied(min(VARIANTS, count), size, vocabulary)
    encoded = [encode_sample(sample) for sample in samples]
    shards = {}
    for start in tqdm(range(0, count, shard_size), desc="written shards"):
        path = folder / shard_name(start // shard_size)
        numbers = range(start, min(start + shard_size, count))
        with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
            for index in numbers:
                record = samples[index % len(samples)].record
                facts = [
                    one._replace(score=round(random.uniform(), 6), area=random.uniform(0, 0.6))
                    for one in record.facts
                ]
                request = record.request._replace(index=index)
                record = record._replace(request=request, facts=facts)
                tar.write({**encoded[index % len(samples)], **encode_record(record)})
        facts = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        shards[path.name] = {"samples": len(numbers), **facts}
    words = {"name": vocabulary.name, "digest": vocabulary.digest, "split": vocabulary.split}
    keys = ["background", *(c.key for c in vocabulary.classes)]
    manifest = {
        "format": 2,
        "vocabulary": {**words, "num_classes": vocabulary.num_classes, "keys": keys},
        "backbone": {"model": "drawn scenes"},
        "annotator": {"source": "none"},
        "config_digest": "none",
        "counts": {"samples": count, "classes": {}, "pairs": {}},
        "shards": shards,
    }
    write_json(folder / DATASET, manifest)


def main(argv: list[str] | None = None) -> dict:
    """Run the benchmark."""
    made = parser(__doc__.splitlines()[0], repeats=1)
    made.add_argument("--samples", type=int, default=100_000)
    made.add_argument("--size", type=int, default=64, help="pixels of a side")
    made.add_argument("--shard-size", type=int, default=1000)
    arguments = made.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, arguments.samples, arguments.size, arguments.shard_size)
        seconds = []
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "ovseg", "report", name], check=True)
            seconds.append(round(time.perf_counter() - start, 1))
        page = (folder / "report.html").stat().st_size
    result = {
        "samples": arguments.samples,
        "size": arguments.size,
        "seconds": seconds,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000),
        "page_mb": round(page / 1e6, 2),
    }
    return finish("dataset_report", result, "cpu", arguments.out)


if __name__ == "__main__":
    main()
