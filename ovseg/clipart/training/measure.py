"""How good the clip-art world's models are: the numbers of docs/clipart.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ovseg.annotators.mmseg import MMSegAnnotator
from ovseg.backbones.base import DiffusionBackbone
from ovseg.clipart.stream import DrawnScenes
from ovseg.data.prompts import TemplatePrompts
from ovseg.metrics import SegmentationIoU
from ovseg.vocabulary import Vocabulary

SEED = 900_000  # far from every seed used in training
MIN_SHARE, MAX_STRANGER = 0.4, 0.1


@torch.no_grad()
def annotator_iou(annotator: MMSegAnnotator, vocabulary: Vocabulary, scenes: int = 1000) -> dict:
    """Return the annotator's mIoU and IoU per class on unseen drawn scenes of one and two objects.

    In percent; background is scored as a class and left out of the mean.
    """
    stream = DrawnScenes(scenes, SEED, objects=(1, 2))
    stream.bind(vocabulary)
    metric = SegmentationIoU(vocabulary.num_classes, vocabulary.seen, vocabulary.unseen)
    for start in tqdm(range(0, scenes, 50), desc="annotator", mininterval=5):
        batch = stream[range(start, min(scenes, start + 50))]
        metric.update(annotator.segmenter(batch.images).argmax(1), batch.labels)
    per_class = metric.compute()["per_class"]
    values = {name: float(per_class[i]) for i, name in enumerate(vocabulary.names) if i}
    return {"miou": float(np.mean(list(values.values()))), "per_class": values}


def expected_area(vocabulary: Vocabulary, objects: int, scenes: int = 2000) -> np.ndarray:
    """Return the mean share of the image that each class covers in drawn scenes, ``(N + 1,)``."""
    stream = DrawnScenes(scenes, SEED + 1, objects=(objects,))
    stream.bind(vocabulary)
    total, count = np.zeros(vocabulary.num_classes), np.zeros(vocabulary.num_classes)
    for start in range(0, scenes, 100):
        for labels in stream[range(start, start + 100)].labels.numpy():
            share = np.bincount(labels.ravel(), minlength=vocabulary.num_classes) / labels.size
            total += share
            count += share > 0
    return total / np.maximum(count, 1)


@torch.no_grad()
def generated_share(
    backbone: DiffusionBackbone,
    annotator: MMSegAnnotator,
    vocabulary: Vocabulary,
    objects: int,
    images: int = 400,
    batch: int = 40,
) -> tuple[dict, Tensor]:
    """Return how many generated images show what was asked for, and the first 40 of them.

    An image counts when the annotator finds every prompted class with at least 40 % of its expected
    area and no other class on more than 10 % of the image.
    """
    area = expected_area(vocabulary, objects)
    prompts = TemplatePrompts(objects={objects: 1.0}, classes="all")
    good, kept, failures = 0, [], {c.name: [0, 0] for c in vocabulary.classes}
    for start in tqdm(range(0, images, batch), desc=f"{objects} object(s)", mininterval=5):
        indices = range(start, min(images, start + batch))
        requests = [prompts.request(i, vocabulary, SEED) for i in indices]
        sample = backbone.sample(requests)
        kept.append(sample.images)
        labels = annotator.segmenter(sample.images).argmax(1).cpu().numpy()
        for request, label in zip(requests, labels, strict=True):
            share = np.bincount(label.ravel(), minlength=vocabulary.num_classes) / label.size
            asked = [e.class_id for e in request.entities]
            found = [share[i] >= MIN_SHARE * area[i] for i in asked]
            for i, hit in zip(asked, found, strict=True):
                failures[vocabulary[i].name][0] += not hit
                failures[vocabulary[i].name][1] += 1
            strangers = np.delete(share, [0, *asked])
            good += all(found) and strangers.max() <= MAX_STRANGER
    missed = {name: round(100 * a / max(b, 1), 1) for name, (a, b) in failures.items()}
    return {"good": 100 * good / images, "missed": missed}, torch.cat(kept)[:40]


def contact_sheet(images: Tensor, path: Path, columns: int = 10, zoom: int = 2) -> None:
    """Write ``(B, 3, H, W)`` uint8 images as one PNG."""
    tiles = images.permute(0, 2, 3, 1).cpu().numpy()
    tiles = tiles[: len(tiles) // columns * columns]
    rows = [np.concatenate(tiles[k : k + columns], 1) for k in range(0, len(tiles), columns)]
    grid = Image.fromarray(np.concatenate(rows))
    grid.resize((grid.width * zoom, grid.height * zoom), Image.NEAREST).save(path)
