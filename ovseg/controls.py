"""Controls of a grounding result: what a head that knows no names would score, and the ceiling."""

from __future__ import annotations

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
