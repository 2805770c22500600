"""What the heads of MMSegmentation's networks compute in training: losses alone, ours if asked."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ovseg.losses_segmentation import PixelLoss


class HeadLoss(nn.Module):
    """What a head calls as its `loss_decode`.

    Args:
        loss: Of the label map.
        weight: Of this head.
    """

    loss_name = "loss_pixels"

    def __init__(self, loss: PixelLoss, weight: float) -> None:
        super().__init__()
        self.loss, self.weight = loss, weight

    def forward(
        self,
        seg_logit: Tensor,
        seg_label: Tensor,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
    ) -> Tensor:
        """Return the scalar loss of logits ``(B, N, ...)``; a head gives no `weight` here."""
        return self.weight * self.loss(seg_logit, seg_label)


def replace_losses(network: nn.Module, loss: PixelLoss) -> None:
    """Put a loss in the place of every head's own, with the weight that the head's own has.

    Raises:
        ValueError: If a head chooses its pixels by a sampler, or the network has no such head.
    """
    heads = [module for module in network.modules() if hasattr(module, "loss_decode")]
    if not heads:
        raise ValueError(f"{type(network).__name__} has no head with a loss_decode to replace")
    for head in heads:
        if getattr(head, "sampler", None) is not None:
            raise ValueError(
                f"{type(head).__name__} chooses its pixels by a sampler: leave out that or `loss`"
            )
        own = head.loss_decode
        parts = own if isinstance(own, nn.ModuleList) else [own]
        head.loss_decode = HeadLoss(loss, sum(getattr(p, "loss_weight", 1.0) for p in parts))


def leave_out_accuracy(network: nn.Module) -> None:
    """Keep heads from ranking all classes at every pixel for an accuracy that nobody reads.

    On a CPU that is 15 % of a step of the clip-art world's DeepLabv3+. Heads that compute losses
    in a way of their own are left as they are.
    """
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    for head in network.modules():
        own = getattr(type(head), "loss_by_feat", None)
        if own is BaseDecodeHead.loss_by_feat:
            head.loss_by_feat = MethodType(_losses, head)


def _losses(head: Any, seg_logits: Tensor, batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
    """Do what `BaseDecodeHead.loss_by_feat` does, but for the accuracy."""
    labels = torch.stack([sample.gt_sem_seg.data for sample in batch_data_samples]).squeeze(1)
    logits = interpolate(
        seg_logits, labels.shape[-2:], mode="bilinear", align_corners=head.align_corners
    )
    weight = None if head.sampler is None else head.sampler.sample(logits, labels[:, None])
    own = head.loss_decode
    losses: dict[str, Tensor] = {}
    for part in own if isinstance(own, nn.ModuleList) else [own]:
        value = part(logits, labels, weight=weight, ignore_index=head.ignore_index)
        losses[part.loss_name] = losses.get(part.loss_name, 0) + value
    return losses
