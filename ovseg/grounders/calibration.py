"""How surprising a probe's answer is for a name, whether or not the name was ever trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ovseg.structures import Probe

MOMENTUM = 0.1
"""Share of a batch in the running moments, as in batch norm."""


class ProbeNorm(nn.Module):
    """Standardise a probe's answers for each name by what pixels of any picture answer for it.

    Some names draw more attention than others wherever they are not, and how much cannot be learnt
    for a name that is never trained. But a probe's answer is linear in the name's key, so mean and
    variance of the answers for any name follow from the moments of the pixels' queries alone.

    Args:
        steps: S.
        heads: Heads of the probe.
        width: d, channels of a query.
    """

    mean: Tensor
    cov: Tensor
    seen: Tensor

    def __init__(self, steps: int, heads: int, width: int) -> None:
        super().__init__()
        eye = torch.eye(width + 1).expand(steps, heads, -1, -1)
        self.register_buffer("mean", torch.zeros(steps, heads, width + 1))
        self.register_buffer("cov", eye.clone())
        self.register_buffer("seen", torch.tensor(False))

    @torch.no_grad()
    def update(self, probe: Probe) -> None:
        """Add a batch's pixels to the running moments."""
        rows = torch.cat([probe.queries, -probe.totals[:, :, :, None]], dim=3)
        rows = rows.flatten(4).permute(1, 2, 0, 4, 3).flatten(2, 3)  # (S, heads, pixels, d + 1)
        mean = rows.mean(dim=2)
        centred = rows - mean[:, :, None]
        with torch.autocast(rows.device.type, enabled=False):
            cov = centred.mT @ centred / rows.shape[2]
        share = torch.where(self.seen, MOMENTUM, 1.0)
        self.mean.lerp_(mean, share)
        self.cov.lerp_(cov, share)
        self.seen.fill_(True)

    def forward(self, probe: Probe, text: Tensor) -> Tensor:
        """Return standardised answers for names ``(B, K, D)``: ``(B, S, K, heads, h, w)``."""
        with torch.autocast(text.device.type, enabled=False):  # small differences of large numbers
            keys = torch.einsum("bkt,ndt->bknd", text, probe.keys)
            keys = torch.cat([keys, torch.ones_like(keys[..., :1])], dim=3)
            mean = torch.einsum("sne,bkne->bskn", self.mean, keys)
            variance = torch.einsum("bkne,snef,bknf->bskn", keys, self.cov, keys)
            answers = probe(text)
        return (answers - mean[..., None, None]) / (variance[..., None, None] + 1e-3).sqrt()
