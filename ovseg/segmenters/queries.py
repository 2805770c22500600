"""Models that answer by queries: each has a probability of every class, and the logits of a mask.

MaskFormer (arXiv 2107.06278) and Mask2Former (arXiv 2112.01527) are matched and supervised
in every layer as transformers does it, except for ignored pixels: there they count as "not this
class", here no mask is compared with them, neither in the loss nor when queries are matched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.losses import mask_bce, mask_dice, mask_focal, mean_count
from ovseg.structures import IGNORE

NOWHERE = -100.0
"""A mask's logit for certainly not; its probability is 0."""
SMALLEST = 1e-6
"""Smallest sum of a class whose log is taken, so that one view of an image cannot rule it out."""

MaskLoss = Callable[[Any, Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]


def semantic_logits(classes: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the logits of pixels: the log of the sum, over queries, of class times mask.

    The softmax of these logits is each class's share of the sums, the arg max that of the papers.

    Args:
        classes: ``(B, Q, N + 1)`` logits, the last one of "no object".
        masks: ``(B, Q, h, w)`` logits.
        size: Height and width of the image.

    Returns:
        ``(B, N, H, W)``.
    """
    labels = classes.float().softmax(dim=-1)[..., :-1]
    inside = F.interpolate(masks.float(), size, mode="bilinear", align_corners=False).sigmoid()
    return torch.einsum("bqn,bqhw->bnhw", labels, inside).clamp(min=SMALLEST).log()


def query_loss(
    layers: Sequence[dict[str, Tensor]], labels: Tensor, criterion: Any, mask_loss: MaskLoss
) -> Tensor:
    """Return the sum of all layers' losses of classes and masks.

    Every class of a label map, background among them, is one mask. Images whose pixels are all
    ignored carry no loss.

    Args:
        layers: Of each supervised layer the ``class_queries_logits (B, Q, N + 1)`` and the
            ``masks_queries_logits (B, Q, h, w)``.
        labels: ``(B, H, W)`` int64, 255 = ignore.
        criterion: The loss of transformers: its matcher, its loss of classes, its weights.
        mask_loss: `on_pixels` or `on_points`.

    Returns:
        Scalar, a zero that reaches every query if nothing is left.
    """
    counted = labels != IGNORE
    kept = counted.flatten(1).any(dim=1)
    ids = [
        label[pixels].unique() for label, pixels in zip(labels[kept], counted[kept], strict=True)
    ]
    count = mean_count(labels.new_tensor(sum(map(len, ids))))
    if not ids:
        return sum(0.0 * value.float().sum() for layer in layers for value in layer.values())
    total = labels.new_zeros((), dtype=torch.float32)
    for layer in layers:
        part = {key: value[kept].float() for key, value in layer.items()}
        total = total + _layer_loss(part, labels[kept], ids, criterion, mask_loss, count)
    return total


def _layer_loss(
    layer: dict[str, Tensor],
    labels: Tensor,
    ids: Sequence[Tensor],
    criterion: Any,
    mask_loss: MaskLoss,
    count: Tensor,
) -> Tensor:
    classes, masks = layer["class_queries_logits"], layer["masks_queries_logits"]
    targets = [(label == i[:, None, None]).float() for label, i in zip(labels, ids, strict=True)]
    counted = labels != IGNORE
    matched = criterion.matcher(_hidden(masks.detach(), counted), classes, targets, list(ids))
    image = torch.cat([q.new_full(q.shape, n) for n, (q, _) in enumerate(matched)])
    query = torch.cat([q for q, _ in matched])
    wanted = torch.cat([target[t] for target, (_, t) in zip(targets, matched, strict=True)])
    parts = mask_loss(
        criterion,
        masks[image, query][:, None],
        _hidden(masks.detach(), counted)[image, query][:, None],
        wanted[:, None],
        counted[image][:, None],
    )
    losses = {key: value.sum() / count for key, value in parts.items()}
    losses |= criterion.loss_labels(classes, list(ids), matched)
    return sum(criterion.weight_dict[key] * value for key, value in losses.items())


def on_pixels(
    criterion: Any, masks: Tensor, hidden: Tensor, targets: Tensor, counted: Tensor
) -> dict[str, Tensor]:
    """Return MaskFormer's focal and Dice loss of each mask, on all pixels that count.

    Args:
        criterion: Unused; what `on_points` needs.
        masks: ``(M, 1, h, w)`` logits.
        hidden: Unused; what `on_points` needs.
        targets: ``(M, 1, H, W)`` float in {0, 1}.
        counted: ``(M, 1, H, W)`` bool.

    Returns:
        ``loss_mask`` and ``loss_dice``, ``(M, 1)`` each.
    """
    masks = F.interpolate(masks, targets.shape[-2:], mode="bilinear", align_corners=False)
    return {
        "loss_mask": mask_focal(masks, targets, counted),
        "loss_dice": mask_dice(masks, targets, counted),
    }


def on_points(
    criterion: Any, masks: Tensor, hidden: Tensor, targets: Tensor, counted: Tensor
) -> dict[str, Tensor]:
    """Return Mask2Former's cross-entropy and Dice loss of each mask, on points that count.

    Args:
        criterion: Draws points, most of them where a mask is unsure.
        masks: ``(M, 1, h, w)`` logits.
        hidden: The same, sure of nothing being where pixels are ignored.
        targets: ``(M, 1, H, W)`` float in {0, 1}.
        counted: ``(M, 1, H, W)`` bool.

    Returns:
        ``loss_mask`` and ``loss_dice``, ``(M, 1)`` each.
    """
    points = criterion.sample_points_using_uncertainty(
        hidden,
        criterion.calculate_uncertainty,
        criterion.num_points,
        criterion.oversample_ratio,
        criterion.importance_sample_ratio,
    )
    grid = 2 * points[:, None] - 1  # (M, 1, P, 2)
    masks, targets = (F.grid_sample(x, grid, align_corners=False) for x in (masks, targets))
    counted = F.grid_sample(counted.float(), grid, mode="nearest", align_corners=False) > 0
    return {
        "loss_mask": mask_bce(masks, targets, counted),
        "loss_dice": mask_dice(masks, targets, counted),
    }


def _hidden(masks: Tensor, counted: Tensor) -> Tensor:
    """Return masks ``(B, Q, h, w)`` that are nowhere where no pixel ``(B, H, W)`` counts."""
    seen = F.interpolate(counted[:, None].float(), masks.shape[-2:], mode="nearest") > 0
    return masks.masked_fill(~seen, NOWHERE)
