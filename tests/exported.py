"""A dataset that is hard to export: odd names, unequal sizes, holes, ignored pixels, instances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from toy_data import request
from webdataset import TarWriter

from ovseg.__main__ import main
from ovseg.data.contents import describe_shards
from ovseg.data.manifest import write_json
from ovseg.data.shard_file import shard_name
from ovseg.data.shard_format import Record, StoredSample, encode_sample
from ovseg.export.format import part_of
from ovseg.quality import Facts, label_facts
from ovseg.vocabulary import Vocabulary

SHARE = 0.3
"""Of the twelve keys, 6 and 9 are kept for validation."""

ODD = ["potted plant", "déjà: vu", 'a "b" #c', "{d} | <e>", "- 'f'"]


def vocabulary_of(folder: Path, keys: list[str] = ODD) -> Path:
    """Write a vocabulary of these keys."""
    classes = [{"key": key, "color": [n, 0, 0]} for n, key in enumerate(keys)]
    path = folder / "odd name.yaml"
    data = {"name": "odd", "classes": classes, "splits": {"1": []}}
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    return path


def make_sample(index: int, classes: int, instances: bool) -> StoredSample:
    """Make a sample of three boxes, the second with a hole in it, the last two of one class."""
    r = np.random.default_rng(index)
    height, width = 20 + index, 34 - index
    ids = (1 + index % classes, 1 + (index + 1) % classes)
    mask, numbers = np.zeros((2, height, width), np.uint8)
    for number, (class_id, left) in enumerate(zip((*ids, ids[1]), (1, 8, 15), strict=True), 1):
        box = slice(2 + number, 12 + number), slice(left, left + 6)
        mask[box], numbers[box] = class_id, number
    mask[8, 10] = numbers[8, 10] = 0
    mask[-2:], numbers[:, :2] = 255, 0  # ignored; a part of the first box has no number
    image = r.integers(0, 256, (height, width, 3), dtype=np.uint8)
    latent = np.zeros((1, 1, 2, 2), np.float32)
    asked = request(index, 'one, "two" \n ß', "one", "two")
    entities = tuple(e._replace(class_id=i) for e, i in zip(asked.entities, ids, strict=True))
    asked = asked._replace(entities=entities)
    facts = [
        Facts(entity.name, True, score, uncertain=0.0, **label_facts(mask, entity.class_id))
        for entity, score in zip(entities, (0.5, 0.25), strict=True)
    ]
    sample = StoredSample(Record(asked, facts, [1.0], ["", ""]), image, mask, latent)
    return replace(sample, instances=numbers.astype(np.uint16)) if instances else sample


def write_samples(
    folder: Path, vocabulary: str | Path, instances: bool = True, count: int = 12
) -> list[StoredSample]:
    """Write such a dataset in two shards, and return what is in it."""
    folder.mkdir()
    classes = Vocabulary.load(vocabulary)
    samples = [make_sample(n, len(classes.classes), instances) for n in range(count)]
    for number, part in enumerate((samples[:7], samples[7:])):
        with (
            (folder / shard_name(number)).open("wb") as file,
            TarWriter(file, encoder=False, mtime=0) as tar,
        ):
            for sample in part:
                tar.write(encode_sample(sample))
    config = {
        "format": 2,
        "vocabulary": {
            "name": classes.name,
            "digest": classes.digest,
            "split": classes.split,
            "num_classes": classes.num_classes,
            "keys": ["background", *(c.key for c in classes.classes)],
        },
        "backbone": {"model": "/home/me/models/toy", "revision": None, "licence": "mit"},
        "annotator": {"source": "mmseg:/home/me/detector"},
    }
    manifest = describe_shards(folder, {"config": config, "environment": {}}, 2)
    write_json(folder / "dataset.json", manifest)
    return samples


def export(dataset: Path, out: Path, name: str, *arguments: str | Path) -> int:
    """Run the verb; returns its exit code."""
    fixed = ["--format", name, "--out", str(out), "--val-share", str(SHARE)]
    return main(["export", str(dataset), *fixed, *map(str, arguments)])


def key(sample: StoredSample) -> str:
    """Return a sample's key."""
    return f"{sample.request.index:08d}"


def part(sample: StoredSample) -> str:
    """Return "train" or "val"."""
    return part_of(key(sample), SHARE)
