"""A loss of ours in the heads of MMSegmentation's networks."""

from __future__ import annotations

from torch import Tensor, nn

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
