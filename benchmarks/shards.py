"""Random access to shards against the same members as files of a folder, and against `webdataset`.

    python benchmarks/shards.py --out runs/benchmarks/shards.json

All give batches as tensors and decode a member with the same function. With ``labelled`` these are
images, masks and JSON, as a segmenter is trained on; with ``whole`` latents too, as a grounding
module is. ``pictures`` is a folder's PNGs alone. `ShardStream` and the folders are asked in one
shuffled order, `webdataset` reads in that of the tars, as it can do no other. Files are in the page
cache for all. Seconds are the process's own on the processor.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from common import finish, interleave, parser, ratios, spread
from PIL import Image
from torch import Tensor
from webdataset import TarWriter, WebDataset

from ovseg.clipart.stream import DrawnScenes
from ovseg.data.contents import describe_shards
from ovseg.data.manifest import DATASET, write_json
from ovseg.data.samplers import shuffled_batches
from ovseg.data.shard_file import shard_name
from ovseg.data.shard_format import (
    LABELLED,
    STORED,
    Record,
    StoredSample,
    decode_sample,
    encode_sample,
)
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
    """Write shards with their `dataset.json`, and the same members as files beside them."""
    (folder / "files").mkdir()
    for number, start in enumerate(range(0, len(samples), shard_size)):
        path = folder / shard_name(number)
        with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
            for sample in samples[start : start + shard_size]:
                members = encode_sample(sample)
                tar.write(members)
                for kind in STORED:
                    place = folder / "files" / f"{sample.request.index:08d}.{kind}"
                    place.write_bytes(members[kind])
    facts = {"name": words.name, "digest": words.digest, "split": words.split}
    keys = ["background", *(c.key for c in words.classes)]
    config = {
        "format": 2,
        "backbone": None,
        "annotator": {},
        "vocabulary": {**facts, "num_classes": words.num_classes, "keys": keys},
        "latents_digest": None,
    }
    shards = -(-len(samples) // shard_size)
    request = {"config": config, "environment": {}}
    write_json(folder / DATASET, describe_shards(folder, request, shards))


def batch_of(samples: Sequence[StoredSample]) -> tuple[Tensor, Tensor, list, list, Tensor | None]:
    """Return images, labels, requests, found flags and latents."""
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))
    latents = None
    if samples[0].latent is not None:
        latents = torch.from_numpy(np.stack([sample.latent for sample in samples]))
    return (
        images.permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.stack([sample.mask for sample in samples]).astype(np.int64)),
        [sample.request for sample in samples],
        [sample.found for sample in samples],
        latents,
    )


def read_files(folder: Path, positions: list[int], wanted: Sequence[str]) -> tuple:
    """Read a batch from single files."""
    samples = []
    for position in positions:
        members = {kind: (folder / f"{position:08d}.{kind}").read_bytes() for kind in wanted}
        samples.append(decode_sample(members, wanted))
    return batch_of(samples)


def read_pictures(folder: Path, positions: list[int]) -> tuple[Tensor, Tensor]:
    """Read a batch of images and masks from single files."""
    stacks = []
    for kind in ("image", "mask"):
        arrays = []
        for position in positions:
            with Image.open(folder / f"{position:08d}.{kind}.png") as image:
                arrays.append(np.array(image))
        stacks.append(np.stack(arrays))
    images = torch.from_numpy(stacks[0]).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(stacks[1].astype(np.int64))


def read_webdataset(folder: Path, batch: int, wanted: Sequence[str]) -> Iterable[tuple]:
    """Return batches of the tars, in their order, as `webdataset` gives them."""

    def decode(sample: dict) -> StoredSample:
        return decode_sample({kind: sample[kind] for kind in wanted}, wanted)

    tars = sorted(str(path) for path in folder.glob("*.tar"))
    return WebDataset(tars, shardshuffle=False).map(decode).batched(batch, batch_of, partial=False)


def open_stream(folder: Path, words: Vocabulary) -> ShardStream:
    """Return the stream of a written folder."""
    stream = ShardStream(str(folder))
    stream.bind(words)
    return stream


def main(argv: list[str] | None = None) -> dict:
    """Run the benchmark."""
    made = parser(__doc__.splitlines()[0], repeats=7)
    made.add_argument("--samples", type=int, default=512)
    made.add_argument("--shard-size", type=int, default=128)
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--size", type=int, default=64, help="pixels of a side")
    arguments = made.parse_args(argv)
    words = Vocabulary.load("clipart")
    samples = make_samples(arguments.samples, arguments.size, words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(samples, folder, arguments.shard_size, words)
        files, batch = folder / "files", arguments.batch
        whole, labelled = open_stream(folder, words), open_stream(folder, words)
        labelled.check(None)  # nobody needs latents
        batches = shuffled_batches(len(whole), batch, seed=0, epoch=0)
        cases = {
            "labelled/shards": lambda: [labelled[places] for places in batches],
            "labelled/files": lambda: [read_files(files, p, LABELLED) for p in batches],
            "labelled/webdataset": lambda: list(read_webdataset(folder, batch, LABELLED)),
            "pictures/files": lambda: [read_pictures(files, places) for places in batches],
            "whole/shards": lambda: [whole[places] for places in batches],
            "whole/files": lambda: [read_files(files, places, STORED) for places in batches],
            "whole/webdataset": lambda: list(read_webdataset(folder, batch, STORED)),
        }
        compare(cases, whole, batches, batch)
        seconds = interleave(cases, arguments.repeats, clock=time.process_time)
    count = len(batches) * batch
    result = {
        "samples": arguments.samples,
        "size": arguments.size,
        "batch": batch,
        "samples_per_second": {
            case: spread([count / time for time in times]) for case, times in seconds.items()
        },
        "shards_over": {
            other: ratios(seconds[other], seconds[f"{part}/shards"])
            for part, other in (
                ("labelled", "labelled/files"),
                ("labelled", "labelled/webdataset"),
                ("labelled", "pictures/files"),
                ("whole", "whole/files"),
                ("whole", "whole/webdataset"),
            )
        },
    }
    return finish("shards", result, "cpu", arguments.out)


def compare(cases: dict, stream: ShardStream, batches: list[list[int]], size: int) -> None:
    """Refuse to time readers that do not read the same."""
    for case, read in cases.items():
        in_order = [list(range(n, n + size)) for n in range(0, len(batches) * size, size)]
        there = in_order if case.endswith("webdataset") else batches
        for places, found in zip(there, read(), strict=True):
            expected = stream[places]
            if case.endswith("shards"):
                found = found.images, found.labels, found.requests
            images, labels, *more = found
            same = torch.equal(images, expected.images) and torch.equal(labels, expected.labels)
            if not same or (more and more[0] != expected.requests):
                raise SystemExit(f"{case} does not hold the same samples")


if __name__ == "__main__":
    main()
