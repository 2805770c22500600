"""How good the clip-art world's models are: the numbers of docs/clipart.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ovseg.annotators.mmseg import MMSegAnnotator
from ovseg.backbones.base import DiffusionBackbone
from ovseg.clipart.scenes import COLORS
from ovseg.clipart.stream import DrawnScenes
from ovseg.clipart.training import gates
from ovseg.clipart.training.autoencoder import pictures
from ovseg.data.prompts import TemplatePrompts
from ovseg.metrics import SegmentationIoU
from ovseg.structures import Entity, Request
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
    seed: int = SEED,
) -> tuple[dict, Tensor]:
    """Return how many generated images show what was asked for, and the images.

    An image is good when the annotator finds every prompted class with at least 40 % of its
    expected area and no other class on more than 10 % of the image; it is confused when the class
    that covers most of it was not prompted.
    """
    area = expected_area(vocabulary, objects)
    prompts = TemplatePrompts(objects={objects: 1.0}, classes="all")
    good, confused, kept = 0, 0, []
    failures = {c.name: [0, 0] for c in vocabulary.classes}
    for start in tqdm(range(0, images, batch), desc=f"{objects} object(s)", mininterval=5):
        indices = range(start, min(images, start + batch))
        requests = [prompts.request(i, vocabulary, seed) for i in indices]
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
            confused += strangers.max() > share[asked].max()
            good += all(found) and strangers.max() <= MAX_STRANGER
    missed = {name: round(100 * a / max(b, 1), 1) for name, (a, b) in failures.items()}
    shares = {"good": 100 * good / images, "confused": 100 * confused / images}
    return {**shares, "missed": missed}, torch.cat(kept)


@torch.no_grad()
def named_colors(
    backbone: DiffusionBackbone, annotator: MMSegAnnotator, vocabulary: Vocabulary, images: int
) -> float:
    """Return in how many images of "a photo of a red house" the object has the colour, in percent.

    Of those in which the annotator finds the class; see `gates.color_of`.
    """
    right, found = 0, 0
    for start in tqdm(range(0, images, 40), desc="colours", mininterval=5):
        asked = []
        for i in range(start, min(images, start + 40)):
            color, c = list(COLORS)[i % len(COLORS)], vocabulary.classes[i // len(COLORS) % 20]
            article = "an" if color[0] in "aeiou" else "a"
            asked.append((color, c.id, f"a photo of {article} {color} {c.name}"))
        requests = [Request(i, SEED + start + i, a[2], ()) for i, a in enumerate(asked)]
        made = backbone.sample(requests).images
        labels = annotator.segmenter(made).argmax(1).cpu()
        pixels = made.permute(0, 2, 3, 1).cpu()
        for (color, class_id, _), label, picture in zip(asked, labels, pixels, strict=True):
            mask = label == class_id
            if mask.float().mean() > 0.02:
                found += 1
                right += gates.color_of(picture[mask].numpy()) == color
    return 100 * right / max(found, 1)


def copying(images: Tensor, pool: int = 40_000, held_out: int = 400) -> dict[str, float]:
    """Compare how near generated pictures and held-out scenes come to the scenes of the training.

    Args:
        images: ``(B, 3, 64, 64)`` uint8, generated.
        pool: Scenes that the denoiser was trained on.
        held_out: Scenes that it was not.

    Returns:
        Median distance to the nearest training scene, of pictures of 16x16 pixels in [0, 1].
    """

    def small(pixels: Tensor) -> np.ndarray:
        return F.avg_pool2d(pixels, 4).flatten(1).double().numpy()

    training = [
        small((pictures(300, start, 500) + 1) / 2)
        for start in tqdm(range(0, pool, 500), desc="training scenes", mininterval=5)
    ]
    others = small((pictures(SEED + 2, 0, held_out) + 1) / 2)
    distances = {"generated": small(images.cpu().float() / 255), "held_out": others}
    table = np.concatenate(training)
    return {k: round(float(np.median(gates.nearest(table, v))), 4) for k, v in distances.items()}


@torch.no_grad()
def language(
    backbone: DiffusionBackbone, annotator: MMSegAnnotator, vocabulary: Vocabulary, images: int
) -> dict:
    """Return what the names' embeddings say of each other, and of what the denoiser makes of them.

    For each split the explained share of the unseen names and how often a ridge map from names to
    features, learnt on the seen ones, finds the right one of the unseen; see `gates`.
    """
    entities = tuple(Entity(c.id, c.name) for c in vocabulary.classes)
    text = backbone.embed([Request(0, 0, "", entities)])[0].double().cpu().numpy()
    rows, labels = [], []
    prompts = TemplatePrompts(objects={1: 1.0}, classes="all")
    for start in tqdm(range(0, images, 40), desc="features", mininterval=5):
        indices = range(start, min(images, start + 40))
        sample = backbone.sample([prompts.request(i, vocabulary, SEED + 3) for i in indices])
        found = annotator.segmenter(sample.images).argmax(1)
        for i, request in enumerate(sample.requests):
            class_id = request.entities[0].class_id
            mask = (found[i] == class_id).float()
            if mask.mean() > 0.02:
                labels.append(class_id - 1)
                maps = [values[i, 0, -1] for values in sample.features.maps.values()]
                rows.append(_inside(maps, mask))
    result = {"closest": gates.closest_pairs(text, [c.name for c in vocabulary.classes])}
    for split in vocabulary.splits:
        chosen = Vocabulary.load(vocabulary.name, split)
        sides = [[i - 1 for i in ids] for ids in (chosen.seen, chosen.unseen)]
        result[split] = {
            "explained": round(100 * gates.explained_share(text, *sides), 1),
            "retrieved": round(
                100 * gates.ridge_retrieval(text, np.array(rows), labels, *sides), 1
            ),
        }
    return result


def _inside(maps: list[Tensor], mask: Tensor) -> np.ndarray:
    """Average maps ``(C, h, w)`` over a mask ``(H, W)``, each scaled to length one."""
    parts = []
    for values in maps:
        weight = F.adaptive_avg_pool2d(mask[None], values.shape[-2:])
        parts.append(F.normalize((values * weight).sum((1, 2)), dim=0))
    return torch.cat(parts).double().cpu().numpy()


def contact_sheet(images: Tensor, path: Path, columns: int = 10, zoom: int = 2) -> None:
    """Write ``(B, 3, H, W)`` uint8 images as one PNG."""
    tiles = images.permute(0, 2, 3, 1).cpu().numpy()
    tiles = tiles[: len(tiles) // columns * columns]
    rows = [np.concatenate(tiles[k : k + columns], 1) for k in range(0, len(tiles), columns)]
    grid = Image.fromarray(np.concatenate(rows))
    grid.resize((grid.width * zoom, grid.height * zoom), Image.NEAREST).save(path)
