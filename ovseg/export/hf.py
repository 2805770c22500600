"""Parquet files and a card, as Hugging Face datasets are."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ovseg.data.card import code, licence_of, plain, without_folders
from ovseg.export.format import TRAIN, VAL, Format, Item
from ovseg.vocabulary import Vocabulary

SPLITS = {TRAIN: "train", VAL: "validation"}
FILE_BYTES = 256 << 20
"""Pictures per file at least, but for the last; they are kept in memory until it is written."""

GROUP = 100
"""Samples that are read at once."""

PICTURES = {"image": "image.png", "mask": "mask.png", "instances": "instances.png"}
"""Which member of a sample becomes which column."""

PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
FEATURES = {"info": {"features": {name: {"_type": "Image"} for name in PICTURES}}}
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        **dict.fromkeys(PICTURES, PICTURE),
        "prompt": pa.string(),
        "negative_prompt": pa.string(),
        "seed": pa.int64(),
        "names": pa.list_(pa.string()),
        "class_ids": pa.list_(pa.int64()),
        "found": pa.list_(pa.bool_()),
        "scores": pa.list_(pa.float64()),
    },
    metadata={"huggingface": json.dumps(FEATURES)},
)

MODEL = "- text-to-image model: {model}, revision {revision}, licence {licence}\n"

CARD = """---
{head}---

# Images and masks, {name}

{samples} images with masks, written by ovseg with the configuration `{digest}`.

{model}- annotator, whose masks these are: {annotator}

`image` is RGB; `mask` holds class ids, 0 background and 255 ignore; `instances` numbers the objects
of a mask where the annotator tells them apart, else it is empty. `names`, `class_ids`, `found` and
`scores` are the things named in `prompt`, in its order; one that was not found is not in the mask,
even if it is in the image.

```python
from datasets import load_dataset

sample = load_dataset("PATH_OR_REPOSITORY", split="train")[0]
sample["image"], sample["mask"], sample["prompt"]
```

## Classes
{classes}
"""


class HF(Format):
    """``data/train-*.parquet``, ``data/validation-*.parquet`` and `README.md`, the card."""

    def __init__(self, folder: Path, vocabulary: Vocabulary, manifest: dict) -> None:
        super().__init__(folder, vocabulary, manifest)
        (self.folder / "data").mkdir()
        self.files = {part: _Files(self.folder / "data", SPLITS[part]) for part in SPLITS}

    def add(self, item: Item) -> None:
        """Add a row."""
        request, sample = item.sample.request, item.sample
        pictures = {
            name: {"bytes": item.files[member], "path": f"{item.key}.{member}"}
            for name, member in PICTURES.items()
            if member in item.files
        }
        row = {
            "key": item.key,
            **pictures,
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": request.seed,
            "names": [entity.name for entity in request.entities],
            "class_ids": [entity.class_id for entity in request.entities],
            "found": sample.found,
            "scores": [facts.score for facts in sample.record.facts],
        }
        self.files[item.part].add(row, sum(len(p["bytes"]) for p in pictures.values()))

    def finish(self) -> dict:
        """Write the last rows and the card."""
        for files in self.files.values():
            files.write()
        there = [SPLITS[part] for part, files in self.files.items() if files.count]
        self.write("README.md", card(self.vocabulary, self.manifest, there))
        return {}


class _Files:
    """Rows of one split, written whenever there are enough for a file."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.rows: list[dict] = []
        self.size = self.count = 0

    def add(self, row: dict, size: int) -> None:
        self.rows.append(row)
        self.size += size
        if self.size >= FILE_BYTES:
            self.write()

    def write(self) -> None:
        if not self.rows:
            return
        table = pa.Table.from_pylist(self.rows, SCHEMA)
        path = self.folder / f"{self.split}-{self.count:05d}.parquet"
        pq.write_table(table, path, row_group_size=GROUP)
        self.rows, self.size, self.count = [], 0, self.count + 1


def card(vocabulary: Vocabulary, manifest: dict, splits: list[str]) -> str:
    """Return the dataset's card; models are named without the folders that they were in."""
    facts = without_folders(manifest)
    backbone, annotator = facts["backbone"], facts["annotator"]
    parts = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    head = {
        **licence_of(manifest),
        "pretty_name": f"Images and masks, {vocabulary.name}",
        "task_categories": ["image-segmentation"],
        "tags": ["ovseg"],
        "configs": [{"config_name": "default", "data_files": parts}],
    }
    return CARD.format(
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True),
        name=plain(vocabulary.name),
        samples=manifest["counts"]["samples"],
        model=MODEL.format(**_recorded(backbone)) if backbone is not None else "",
        annotator=code(annotator["source"]),
        digest=manifest["config_digest"],
        classes="\n".join(f"- {c.id} {code(c.key)}: {plain(c.name)}" for c in vocabulary.classes),
    )


def _recorded(backbone: dict) -> dict:
    said = {key: backbone.get(key) or "not recorded" for key in ("model", "revision", "licence")}
    return {key: code(text) if key == "model" else plain(text) for key, text in said.items()}
