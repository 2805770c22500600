"""Random access to shards against the same PNGs in a folder.

    python benchmarks/shards.py --out benchmarks/results/shards.json

Both give shuffled batches of images and labels as tensors; `ShardStream` also reads prompt, found
flags and latents, which the folder does not hold. Files are in the page cache for both.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from common import finish, interleave, parser, ratios, spread
from PIL import Image
from torch import Tensor
from webdataset import TarWriter

from ovseg.clipart.stream import DrawnScenes
from ovseg.data.contents import describe_shards
from ovseg.data.manifest import DATASET, write_json
from ovseg.data.samplers import shuffled_batches
from ovseg.data.shard_file import shard_name
from ovseg.data.shard_format import Record, StoredSample, encode_sample
from ovseg.data.shards import ShardStream
from ovseg.quality import Facts
from ovseg.structures import Entity, Request
from ovseg.vocabulary import Vocabulary


def make_samples(count: int, size: int, vocabulary: Vocabulary) -> list[StoredSample]:
    """Return drawn scenes of two objects, enlarged to ``size``, with latents of a 4th or 8th."""
    scenes = DrawnScenes(count, seed=0)
    scenes.bind(vocabulary)
    random = np.random.default_rng(0)
    grid = size // (4 if size <= 64 else 8)
    samples = []
    for index in range(count):
        batch = scenes[[index]]
        ids = [i for i in batch.labels.unique().tolist() if i]
        entities = tuple(Entity(i, vocabulary[i].name) for i in ids)
        image = Image.fromarray(batch.images[0].permute(1, 2, 0).numpy())
        mask = Image.fromarray(batch.labels[0].to(torch.uint8).numpy())
        samples.append(
            StoredSample(
                record=Record(
                    Request(index, index, "a photo of drawn things", entities),
                    [Facts(entity.name, True, 1.0) for entity in entities],
                    [1.0],
                    [""] * len(ids),
                ),
                image=np.array(image.resize((size, size), Image.Resampling.BICUBIC)),
                mask=np.array(mask.resize((size, size), Image.Resampling.NEAREST)),
                latent=random.standard_normal((1, 4, grid, grid)).astype(np.float32),
            )
        )
    return samples


def write(samples: list[StoredSample], folder: Path, shard_size: int, words: Vocabulary) -> None:
    """Write shards with their `dataset.json`, and the same PNGs as files beside them."""
    (folder / "files").mkdir()
    for number, start in enumerate(range(0, len(samples), shard_size)):
        path = folder / shard_name(number)
        with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
            for sample in samples[start : start + shard_size]:
                members = encode_sample(sample)
                tar.write(members)
                for kind in ("image", "mask"):
                    place = folder / "files" / f"{sample.request.index:08d}.{kind}.png"
                    place.write_bytes(members[f"{kind}.png"])
    facts = {"name": words.name, "digest": words.digest, "split": words.split}
    keys = ["background", *(c.key for c in words.classes)]
    config = {
        "vocabulary": {**facts, "num_classes": words.num_classes, "keys": keys},
        "latents_digest": None,
    }
    shards = -(-len(samples) // shard_size)
    request = {"config": config, "environment": {}}
    write_json(folder / DATASET, describe_shards(folder, request, shards))


def read_files(folder: Path, positions: list[int]) -> tuple[Tensor, Tensor]:
    """Read a batch of images and masks from single files."""
    stacks = []
    for kind in ("image", "mask"):
        arrays = []
        for position in positions:
            with Image.open(folder / f"{position:08d}.{kind}.png") as image:
                arrays.append(np.array(image))
        stacks.append(torch.from_numpy(np.stack(arrays)))
    images, masks = stacks
    return images.permute(0, 3, 1, 2).contiguous(), masks.long()


def main(argv: list[str] | None = None) -> dict:
    """Run the benchmark."""
    made = parser(__doc__.splitlines()[0], repeats=7)
    made.add_argument("--samples", type=int, default=512)
    made.add_argument("--shard-size", type=int, default=128)
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--size", type=int, default=64, help="pixels of a side")
    arguments = made.parse_args(argv)
    vocabulary = Vocabulary.load("clipart")
    samples = make_samples(arguments.samples, arguments.size, vocabulary)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(samples, folder, arguments.shard_size, vocabulary)
        stream = ShardStream(name)
        stream.bind(vocabulary)
        batches = shuffled_batches(len(stream), arguments.batch, seed=0, epoch=0)
        cases = {
            "shards": lambda: [stream[batch] for batch in batches],
            "files": lambda: [read_files(folder / "files", batch) for batch in batches],
        }
        for one, other in zip(cases["shards"](), cases["files"](), strict=True):
            if not (torch.equal(one.images, other[0]) and torch.equal(one.labels, other[1])):
                raise SystemExit("shards and files do not hold the same pixels")
        seconds = interleave(cases, arguments.repeats)
    count = len(batches) * arguments.batch
    result = {
        "samples": arguments.samples,
        "size": arguments.size,
        "batch": arguments.batch,
        "samples_per_second": {
            case: spread([count / time for time in times]) for case, times in seconds.items()
        },
        "shards_over_files": ratios(seconds["files"], seconds["shards"]),
    }
    return finish("shards", result, "cpu", arguments.out)


if __name__ == "__main__":
    main()
