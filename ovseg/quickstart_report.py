"""From the results of a quickstart's stages to report.json and report.html."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ovseg.annotators.base import Annotator
from ovseg.annotators.mmseg import MMSegAnnotator
from ovseg.clipart.training.measure import annotator_iou
from ovseg.data.found import FoundStream
from ovseg.data.json_file import read_json
from ovseg.metrics import SegmentationIoU
from ovseg.quickstart import run_settings
from ovseg.report import page
from ovseg.report.numbers import COLUMNS, METHODS, SCORES, TRAINED, TRAINED_ON
from ovseg.report.pictures import Picture, load_pictures
from ovseg.results import RESULTS
from ovseg.steps import seconds, write_text
from ovseg.structures import DiffusionSample, Entities, to_label_map
from ovseg.vocabulary import Vocabulary

FOLDERS = {"synthetic": "4_segmenter", "supervised": "4_supervised"}
TITLES = {
    "one_seen": "One object, seen",
    "one_unseen": "One object, unseen",
    "two_seen": "Two objects, both seen",
    "two_mixed": "Two objects, one unseen",
    "two_unseen": "Two objects, both unseen",
}
SCENES = 400
"""Drawn scenes on which the annotator itself is scored."""


def make(out: Path) -> None:
    """Write ``OUT/report.json`` and ``OUT/report.html`` from the results of all stages.

    Raises:
        FileNotFoundError: If the folder holds no run, or not all of its results.
        ValueError: If one of its files is damaged.
    """
    vocabulary = Vocabulary.load("clipart", run_settings(out)["split"])
    oracle = MMSegAnnotator("clipart", classes="all")
    oracle.bind(vocabulary)
    quality = annotator_iou(oracle, vocabulary, SCENES)["miou"]
    report = collect(out, vocabulary, oracle, quality)
    write_text(out / "report.json", json.dumps(report, indent=1))
    page.write(out / "report.html", report, gallery(out), vocabulary)


def collect(out: Path, vocabulary: Vocabulary, oracle: Annotator, quality: float) -> dict:
    """Return the content of report.json.

    Args:
        out: Folder of a quickstart whose stages are done.
        vocabulary: Classes and split.
        oracle: Annotator that is asked for all classes, bound to the vocabulary.
        quality: Its own mIoU in percent.

    Raises:
        FileNotFoundError: If a stage's results are missing.
    """
    grounding = {name: _read(out, folder) for name, folder in TRAINED.items()}
    columns = {name: FoundStream(str(out / "1_annotated" / name)) for name in COLUMNS}
    train = FoundStream(str(out / "1_annotated" / "train"))
    synthetic = FoundStream(str(out / "3_synthetic"))
    segmentation = {name: _read(out, folder)["drawn"] for name, folder in FOLDERS.items()}
    labels, unlike = label_quality(synthetic, oracle, vocabulary)
    return {
        "split": vocabulary.split,
        "seen": [vocabulary[i].key for i in vocabulary.seen],
        "unseen": [vocabulary[i].key for i in vocabulary.unseen],
        "grounding": {m: _columns(_results(m, grounding)) for m in METHODS},
        "choice": {m: _choices(_results(m, grounding)) for m in METHODS},
        "presence": {m: _presence(grounding[m]) for m in ("probe", "fusion")},
        "segmentation": {
            name: {**{s: scores[s] for s in SCORES}, "per_class": scores["per_class"]}
            for name, scores in segmentation.items()
        },
        "labels_of_stage_3": labels,
        "annotator": {"miou": round(quality, 4)},
        "counts": {
            "training images generated": _generated(train),
            **{
                f"test images, {TITLES[c].lower()}": grounding["probe"][c]["images"]
                for c in COLUMNS
            },
            "synthetic images generated": _generated(synthetic),
            "synthetic images, all names found": len(synthetic),
        },
        "excluded": {
            "training": _percent(train.excluded),
            **{name: _percent(stream.excluded) for name, stream in columns.items()},
            "synthetic, by the grounding module": _percent(synthetic.excluded),
            "synthetic, by the annotator": _percent(unlike),
        },
        "seconds": seconds(out),
    }


@torch.no_grad()
def label_quality(
    stream: FoundStream, oracle: Annotator, vocabulary: Vocabulary, batch_size: int = 64
) -> tuple[dict[str, float | None], float]:
    """Compare a dataset's labels with those of an annotator that is asked for all classes.

    Args:
        stream: The dataset.
        oracle: The annotator, bound to the vocabulary.
        vocabulary: Classes and split.
        batch_size: Images per call of the annotator.

    Returns:
        mIoU of "seen" and "unseen" classes in percent, over images in which the annotator found
        every name, and the share of images in which it did not.
    """
    stream.bind(vocabulary)
    metric = SegmentationIoU(vocabulary.num_classes, vocabulary.seen, vocabulary.unseen)
    used = 0
    for start in range(0, len(stream), batch_size):
        batch = stream[range(start, min(start + batch_size, len(stream)))]
        entities = _entities([request.entities for request in batch.requests])
        sample = DiffusionSample(
            batch.requests, batch.images, batch.latents, batch.timesteps, entities
        )
        annotation = oracle.annotate(sample)
        whole = (annotation.found | ~entities.valid).all(dim=1)
        truth = to_label_map(annotation.masks, entities.class_ids, entities.valid)
        metric.update(batch.labels[whole], truth[whole])
        used += int(whole.sum())
    if not used:
        return {"seen": None, "unseen": None}, 1.0
    scores = metric.compute()
    values = {key: round(float(scores[key]), 4) for key in ("seen", "unseen")}
    plain = {key: None if value != value else value for key, value in values.items()}
    return plain, 1 - used / len(stream)


def gallery(out: Path, count: int = 8) -> page.Gallery:
    """Read the pictures that the stages have left."""
    grounded = {
        title: load_pictures(out / "2_grounding" / "pictures" / column, count // 2)
        for column, title in TITLES.items()
    }
    stream = FoundStream(str(out / "3_synthetic"))
    samples = [stream.sample(place) for place in range(min(count + count // 2, len(stream)))]
    synthetic = [Picture(s.image, {"labels": s.mask}, s.request.prompt) for s in samples]
    predictions = []
    folders = [out / folder / "pictures" / "drawn" for folder in FOLDERS.values()]
    for pictures in zip(*(load_pictures(folder, count) for folder in folders), strict=True):
        maps = {"truth": pictures[0].maps["truth"]}
        maps |= {n: p.maps["prediction"] for n, p in zip(TRAINED_ON, pictures, strict=True)}
        predictions.append(Picture(pictures[0].image, maps, "two objects"))
    return page.Gallery(grounded, synthetic, predictions)


def _results(method: str, grounding: dict[str, dict]) -> dict[str, dict]:
    """Return a method's scores per column; controls are those of our module."""
    if method in grounding:
        return grounding[method]
    return {column: grounding["probe"][column].get(method, {}) for column in COLUMNS}


def _presence(results: dict[str, dict]) -> dict[str, float | None]:
    return {column: results[column].get("presence") for column in COLUMNS}


def _columns(results: dict[str, dict]) -> dict[str, dict]:
    table: dict[str, dict] = {}
    for column, (group, key) in COLUMNS.items():
        scores = results[column]
        table.setdefault(group, {})[key] = scores.get("miou")
        table[group][f"{key}_images"] = scores.get("miou_images")
    return table


def _choices(results: dict[str, dict]) -> dict[str, float | None]:
    return {column: results[column].get("choice") for column in ("two_seen", "two_unseen")}


def _entities(names: Sequence[Sequence]) -> Entities:
    """Pad class ids; the text embeddings, which no detector reads, are empty."""
    width = max(1, *map(len, names))
    ids = torch.tensor([[e.class_id for e in row] + [0] * (width - len(row)) for row in names])
    return Entities(torch.zeros(*ids.shape, 0), ids, ids > 0)


def _generated(stream: FoundStream) -> int:
    return stream.manifest["counts"]["samples"]


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _read(out: Path, stage: str) -> dict:
    path = out / stage / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: run `ovseg quickstart --out {out}` to its end")
    advice = f"delete {out / 'steps' / stage}.json and run `ovseg quickstart --out {out}` again"
    return read_json(path, (), advice)
