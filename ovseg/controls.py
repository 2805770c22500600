"""Controls of a grounding result: what a head that knows no names would score, and the ceiling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def foreground(targets: Tensor, valid: Tensor) -> Tensor:
    """Give the union of all true masks of an image to every name.

    Args:
        targets: ``(B, K, H, W)`` float in {0, 1}.
        valid: ``(B, K)`` bool.

    Returns:
        ``(B, K, H, W)`` float in {0, 1}.
    """
    union = (targets * valid[..., None, None]).amax(dim=1, keepdim=True)
    return union.expand_as(targets)


def two_objects(valid: Tensor) -> Tensor:
    """Return ``(B,)`` bool: the image has exactly two names, ``valid (B, K)``."""
    return valid.sum(dim=1) == 2


def other(masks: Tensor, valid: Tensor) -> Tensor:
    """Give each name the mask of the image's other name.

    Args:
        masks: ``(B, K, H, W)``.
        valid: ``(B, K)`` bool.

    Returns:
        ``(B, K, H, W)``; meaningful for valid names of images that have exactly two.
    """
    first = valid.int().argmax(dim=1)
    last = valid.shape[1] - 1 - valid.flip(1).int().argmax(dim=1)
    here = torch.arange(valid.shape[1], device=valid.device)
    index = torch.where(here == first[:, None], last[:, None], first[:, None])
    return masks.gather(1, index[..., None, None].expand_as(masks))


def ceiling(targets: Tensor, size: tuple[int, int]) -> Tensor:
    """Send the true masks through the feature grid and back: the best that its geometry allows.

    Args:
        targets: ``(B, K, H, W)`` float in {0, 1}.
        size: Height and width of the feature grid.

    Returns:
        ``(B, K, H, W)`` float in [0, 1], to be cut at 0.5.
    """
    pooled = F.adaptive_avg_pool2d(targets, size)
    return F.interpolate(pooled, targets.shape[-2:], mode="bilinear", align_corners=False)


def random_names(text: Tensor, class_ids: Tensor) -> Tensor:
    """Replace each name's embedding by a fixed random vector of its class, of the same length.

    Args:
        text: ``(B, K, D)`` float.
        class_ids: ``(B, K)`` int64.

    Returns:
        ``(B, K, D)`` float.
    """
    if not class_ids.numel():
        return text
    flat = [
        torch.randn(text.shape[2], generator=torch.Generator().manual_seed(i))
        for i in class_ids.flatten().tolist()
    ]
    chosen = F.normalize(torch.stack(flat), dim=1).to(text).unflatten(0, class_ids.shape)
    return chosen * text.norm(dim=2, keepdim=True)


def absent_classes(class_ids: Tensor, indices: Tensor, alike: Sequence[Sequence[int]]) -> Tensor:
    """Choose for each entity a class that its image was not asked for, of its own kind.

    Args:
        class_ids: ``(B, K)`` int64; 0 in padding.
        indices: ``(B,)`` int64 positions in the stream; they alone decide the choice.
        alike: Kinds: lists of class ids (seen and unseen ones, say).

    Returns:
        ``(B, K)`` int64; 0 where there is none. The classes of a row differ.
    """
    chosen = torch.zeros_like(class_ids)
    for row, (ids, index) in enumerate(zip(class_ids.tolist(), indices.tolist(), strict=True)):
        taken = {0, *ids}
        for column, own in enumerate(ids):
            kind = next((kind for kind in alike if own in kind), ())
            free = [i for i in kind if i not in taken]
            if own and free:
                chosen[row, column] = free[(index * len(ids) + column) % len(free)]
                taken.add(int(chosen[row, column]))
    return chosen
