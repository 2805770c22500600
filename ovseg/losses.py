"""Losses of masks, of names being there, and of a grounding module."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ovseg.structures import Entities


def mask_bce(logits: Tensor, targets: Tensor, pixels: Tensor) -> Tensor:
    """Return the binary cross-entropy of each entity's mask, averaged over its counted pixels.

    Args:
        logits: ``(B, K, H, W)``.
        targets: ``(B, K, H, W)`` float in {0, 1}.
        pixels: ``(B, 1, H, W)`` bool; False is ignored.

    Returns:
        ``(B, K)``.
    """
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (loss * pixels).sum(dim=(2, 3)) / pixels.sum(dim=(2, 3)).clamp(min=1)


def mask_dice(logits: Tensor, targets: Tensor, pixels: Tensor) -> Tensor:
    """Return one minus the soft Dice overlap of each entity's mask (V-Net, arXiv 1606.04797).

    One is added to both sides of the fraction, so that an empty target wants an empty mask.

    Args:
        logits: ``(B, K, H, W)``.
        targets: ``(B, K, H, W)`` float in {0, 1}.
        pixels: ``(B, 1, H, W)`` bool; False is ignored.

    Returns:
        ``(B, K)`` in [0, 1).
    """
    probabilities, targets = logits.sigmoid() * pixels, targets * pixels
    overlap = (probabilities * targets).sum(dim=(2, 3))
    total = probabilities.sum(dim=(2, 3)) + targets.sum(dim=(2, 3))
    return 1 - (2 * overlap + 1) / (total + 1)


def mask_focal(
    logits: Tensor, targets: Tensor, pixels: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Return the focal loss of each mask, averaged over its counted pixels (arXiv 1708.02002).

    Args:
        logits: ``(B, K, H, W)``.
        targets: ``(B, K, H, W)`` float in {0, 1}.
        pixels: ``(B, 1, H, W)`` bool; False is ignored.
        alpha: Weight of the pixels of the mask; the others have 1 - alpha.
        gamma: Exponent that weakens what is right already.

    Returns:
        ``(B, K)``.
    """
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weights = alpha * targets + (1 - alpha) * (1 - targets)
    loss = weights * loss * (targets - logits.sigmoid()).abs() ** gamma
    return (loss * pixels).sum(dim=(2, 3)) / pixels.sum(dim=(2, 3)).clamp(min=1)


def grounding_loss(
    logits: Tensor, targets: Tensor, pixels: Tensor, found: Tensor, dice: float = 0.0
) -> Tensor:
    """Average the mask loss over the entities that were found, on all ranks together.

    A prompted entity that was not found carries no loss (Li et al. 2023, section 3.3). A batch
    without any gives a zero that still reaches every parameter, as DDP needs it.

    Args:
        logits: ``(B, K, h, w)``; resized to the targets.
        targets: ``(B, K, H, W)`` float in {0, 1}.
        pixels: ``(B, 1, H, W)`` bool; False is ignored.
        found: ``(B, K)`` bool.
        dice: Weight of the Dice loss; 0 leaves it out.

    Returns:
        Scalar: the sum over this rank's found entities, divided by the mean number of found
        entities per rank, so that DDP's averaged gradient is that of the mean over all of them.
    """
    logits = F.interpolate(logits.float(), targets.shape[-2:], mode="bilinear", align_corners=False)
    loss = mask_bce(logits, targets, pixels)
    if dice > 0:
        loss = loss + dice * mask_dice(logits, targets, pixels)
    return (loss * found).sum() / mean_count(found.sum())


def presence_loss(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Average the binary cross-entropy of names being in their pictures.

    Args:
        logits: ``(B, K)``.
        targets: ``(B, K)`` bool: the name is in the picture.
        counted: ``(B, K)`` bool.

    Returns:
        Scalar, normalised as in `grounding_loss`.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return (loss * counted).sum() / mean_count(counted.sum())


def mean_count(count: Tensor) -> Tensor:
    """Return a count averaged over the ranks, at least one entity in all of them."""
    total, ranks = count.float(), 1
    if dist.is_available() and dist.is_initialized():
        total, ranks = total.clone(), dist.get_world_size()
        dist.all_reduce(total)
    return total.clamp(min=1) / ranks


def with_negatives(
    entities: Entities, count: int, names: Mapping[int, Tensor], turn: int = 0
) -> Entities:
    """Append to each sample names that it does not show, taken from the batch's other samples.

    The next samples are searched in order; the batches are shuffled already. Where they have no
    more, any other name is taken.

    Args:
        entities: B samples with K names each.
        count: Names to append; fewer are valid where there are no more.
        names: Classes that may be appended, by id, with the embedding ``(D,)`` of the name.
        turn: Where to begin among them; another in every step.

    Returns:
        Entities with K + count names; the appended ones are to have empty targets.
    """
    batch = len(entities.valid)
    asked = [  # (class, its place) of each name of each sample
        [(class_id, k) for k, (class_id, ok) in enumerate(zip(*row, strict=True)) if ok]
        for row in zip(entities.class_ids.tolist(), entities.valid.tolist(), strict=True)
    ]
    text = entities.text.new_zeros(batch, count, entities.text.shape[2])
    ids = entities.class_ids.new_zeros(batch, count)
    valid = entities.valid.new_zeros(batch, count)
    for row in range(batch):
        taken = {0, *(class_id for class_id, _ in asked[row])}
        others = ((row + step) % batch for step in range(1, batch))
        near = ((i, entities.text[other, k]) for other in others for i, k in asked[other])
        every = list(names.items())
        start = turn % max(1, len(every))
        slot = 0
        for class_id, name in chain(near, every[start:], every[:start]):
            if slot == count:
                break
            if class_id in names and class_id not in taken:
                taken.add(class_id)
                text[row, slot], ids[row, slot], valid[row, slot] = name, class_id, True
                slot += 1
    return Entities(
        torch.cat([entities.text, text], dim=1),
        torch.cat([entities.class_ids, ids], dim=1),
        torch.cat([entities.valid, valid], dim=1),
    )
