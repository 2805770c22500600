"""How regions of known classes, or single instances, become an `Annotation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ovseg.structures import Annotation


def channels_of(class_ids: Tensor, channels: Mapping[int, int]) -> tuple[Tensor, Tensor]:
    """Look up the channel of each class id.

    Args:
        class_ids: ``(B, K)`` int64.
        channels: ``{class id: channel}`` of the classes that were asked for.

    Returns:
        ``(B, K)`` int64 channel, 0 if there is none, and ``(B, K)`` bool whether there is one.
    """
    size = 1 + max([0, *channels, *class_ids.flatten().tolist()])
    table = torch.full((size,), -1, device=class_ids.device)
    for class_id, channel in channels.items():
        table[class_id] = channel
    channel = table[class_ids]
    return channel.clamp(min=0), channel >= 0


def from_regions(
    probabilities: Tensor, channel: Tensor, asked: Tensor, min_area: float, min_score: float
) -> Annotation:
    """Annotate by a semantic segmentation, in which every pixel is given to one channel.

    The mask of an entity is the probability of its channel against the strongest other one, so it
    is at least 0.5 exactly where the channel is chosen. Channels that nobody asked for still
    compete: their pixels are given to nobody.

    Args:
        probabilities: ``(B, C, H, W)`` float in [0, 1].
        channel: ``(B, K)`` int64 channel of each entity.
        asked: ``(B, K)`` bool; other entities are not found.
        min_area: Smallest area of an entity that counts as found, as a share of the image.
        min_score: Smallest mean probability over its area that counts as found.
    """
    against = _against_others(probabilities)
    chosen = probabilities.argmax(dim=1)
    rows = torch.arange(len(channel), device=channel.device)[:, None]
    masks = against[rows, channel] * asked[..., None, None]
    region = (chosen[:, None] == channel[..., None, None]) & asked[..., None, None]
    area = region.sum(dim=(2, 3))
    score = (probabilities[rows, channel] * region).sum(dim=(2, 3)) / area.clamp(min=1)
    share = area / region[0, 0].numel()
    found = asked & (share >= max(min_area, 1e-9)) & (score >= min_score)
    return Annotation(masks, score, found)


def _against_others(probabilities: Tensor) -> Tensor:
    """Return p / (p + strongest other p) per class; >= 0.5 exactly where the class is chosen."""
    top = probabilities.topk(2, dim=1).values
    best, second = top[:, :1], top[:, 1:]
    other = torch.where(probabilities == best, second, best)
    return probabilities / (probabilities + other).clamp(min=1e-12)


class Instances(NamedTuple):
    """The instances of one image.

    Attributes:
        masks: ``(n, H, W)`` float in [0, 1].
        scores: ``(n,)`` float in [0, 1].
        belongs: ``(n, K)`` bool: the instance is one of the entity.
    """

    masks: Tensor
    scores: Tensor
    belongs: Tensor


def from_instances(images: Sequence[Instances]) -> Annotation:
    """Annotate by instances, which may overlap.

    The mask of an entity is the highest of its instances, its score is that of the best one.
    Instances are numbered from 1 in the order of their scores, the best first; where they overlap
    the better one has the pixel. One whose mask reaches 0.5 nowhere is left out.
    """
    parts = [_of_one_image(instances) for instances in images]
    masks, scores, numbers = (torch.stack(part) for part in zip(*parts, strict=True))
    return Annotation(masks, scores, (masks >= 0.5).flatten(2).any(dim=2), numbers)


def _of_one_image(instances: Instances) -> tuple[Tensor, Tensor, Tensor]:
    """Return masks ``(K, H, W)``, scores ``(K,)`` and numbers of instances ``(H, W)``."""
    inside = instances.masks >= 0.5
    seen = inside.flatten(1).any(dim=1) & instances.belongs.any(dim=1)
    order = instances.scores.sort(descending=True, stable=True).indices
    order = order[seen[order]]
    count, size = instances.belongs.shape[1], instances.masks.shape[1:]
    masks = instances.masks.new_zeros(count, *size)
    scores = instances.scores.new_zeros(count)
    numbers = torch.zeros(size, dtype=torch.long, device=masks.device)
    for number, i in reversed(list(enumerate(order.tolist(), start=1))):
        belongs = instances.belongs[i]
        masks = torch.where(belongs[:, None, None], masks.maximum(instances.masks[i]), masks)
        scores = torch.where(belongs, instances.scores[i], scores)
        numbers[inside[i]] = number
    return masks, scores, numbers
