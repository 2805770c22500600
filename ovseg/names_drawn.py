"""What a backbone draws when it is asked for a name, and what a grounder finds of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from tqdm import tqdm

from ovseg.annotators.base import Annotator
from ovseg.backbones.base import DiffusionBackbone
from ovseg.data.prompts import sample_seed
from ovseg.metrics import GroundingIoU
from ovseg.structures import Entity, Request
from ovseg.vocabulary import VocabularyClass

BATCH = 8
"""Images that are sampled at once."""


class Seen(NamedTuple):
    """What became of the images of a name.

    Attributes:
        drawn: Share of them, in percent, in which the annotator finds it.
        miou: Mean over those of the IoU, in percent, of the grounder's mask with the annotator's;
            None if it is in none.
    """

    drawn: float
    miou: float | None


def look(
    backbone: DiffusionBackbone,
    annotator: Annotator,
    grounder: Annotator,
    words: Mapping[int, tuple[VocabularyClass, str]],
    images: int,
    seed: int,
) -> dict[int, Seen]:
    """Sample images of single names, the same seeds for each, and compare two annotators.

    Args:
        backbone: Draws.
        annotator: Its masks are the truth.
        grounder: Is judged.
        words: ``{key: (class, word for it)}``.
        images: Number of images of each.
        seed: Of the images.
    """
    return {
        key: _look_at(backbone, annotator, grounder, requests(*word, images, seed))
        for key, word in tqdm(words.items(), desc="names")
    }


def requests(entry: VocabularyClass, word: str, images: int, seed: int) -> list[Request]:
    """Return the requests "a photo of a WORD"."""
    guessed = "an" if word[0].lower() in "aeiou" else "a"
    before = f"a photo of {entry.article if word == entry.name else guessed} "
    entity = Entity(entry.id, word, (len(before), len(before) + len(word)))
    return [Request(i, sample_seed(seed, i), before + word, (entity,)) for i in range(images)]


@torch.no_grad()
def _look_at(
    backbone: DiffusionBackbone,
    annotator: Annotator,
    grounder: Annotator,
    asked: list[Request],
) -> Seen:
    iou = GroundingIoU(asked[0].entities[0].class_id + 1)
    for start in range(0, len(asked), BATCH):
        sample = backbone.sample(asked[start : start + BATCH])
        truth, masks = annotator.annotate(sample), grounder.annotate(sample).masks
        everywhere = torch.ones_like(masks[:, :1], dtype=torch.bool)
        ids = sample.entities.class_ids
        iou.to(masks.device).update(masks, truth.masks >= 0.5, everywhere, ids, truth.found)
    drawn = int(iou.entities)
    miou = float(iou.compute()["miou_images"]) if drawn else None
    return Seen(100 * drawn / len(asked), miou)
