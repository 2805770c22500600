"""Whether a name is in a picture, told by the names that could be there in its place."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, batch_norm, normalize

SAME = 0.9
"""Cosine, from the mean of the rivals, from which two names are words for one thing."""


class Rivals(nn.Module):
    """Compare the probes' answers for a name with those for the names of the training.

    What a name that is absent is taken for is mostly something else that is there: then one of the
    others answers higher at the same place. The comparison has no part that belongs to one name.

    Args:
        heads: Heads of each probe, all steps together.
        text_width: Width of the names' embeddings.
        slots: Names that are kept; of more, every so many-th one.
    """

    text: Tensor
    known: Tensor

    def __init__(self, heads: list[int], text_width: int, slots: int = 32) -> None:
        super().__init__()
        self.register_buffer("text", torch.zeros(slots, text_width))
        self.register_buffer("known", torch.tensor(0.0))  # no integer: weights may be averaged
        self.judge = Judge(2 * sum(heads))

    def meet(self, text: Tensor) -> None:
        """Keep names ``(R, D)``."""
        slots = len(self.text)
        places = torch.arange(min(len(text), slots)) * len(text) // min(len(text), slots)
        self.text.zero_()[: len(places)] = text[places.to(text.device)]
        self.known.fill_(len(places))

    @property
    def names(self) -> Tensor:
        """``(R, D)`` embeddings of the names that are known."""
        return self.text[: round(float(self.known))]

    def forward(
        self,
        answers: list[Tensor],
        others: list[Tensor],
        text: Tensor,
        masks: Tensor,
        valid: Tensor,
    ) -> Tensor:
        """Return logits ``(B, K)`` of each name being in the picture.

        Args:
            answers: Of each probe for the names, ``(B, K, heads, h, w)``.
            others: The same for the rivals, ``(B, R, heads, h, w)``.
            text: ``(B, K, D)`` embeddings of the names.
            masks: ``(B, K, H, W)`` in [0, 1].
            valid: ``(B, K)`` bool; the rest is padding.
        """
        same = self._same(text)
        facts = []
        for own, rival in zip(answers, others, strict=True):
            lead = own - _highest(rival, same)
            inside = adaptive_avg_pool2d(masks, own.shape[-2:])[:, :, None]
            mean = (lead * inside).sum((3, 4)) / (inside.sum((3, 4)) + 1e-3)
            facts += [mean, lead.amax((3, 4))]
        return self.judge(torch.cat(facts, dim=2), valid)

    def _same(self, text: Tensor) -> Tensor:
        """Return ``(B, K, R)`` bool: the rival is the name itself, or another word for it."""
        middle = self.names.mean(dim=0) if len(self.names) > 2 else 0.0
        names, rivals = (normalize(t - middle, dim=-1) for t in (text, self.names))
        return names @ rivals.T > SAME


class Judge(nn.Module):
    """A small network from facts about a name to a logit."""

    def __init__(self, facts: int) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm1d(facts, affine=False)
        self.tell = nn.Sequential(nn.Linear(facts, 512), nn.ReLU(), nn.Linear(512, 1))

    def forward(self, facts: Tensor, valid: Tensor) -> Tensor:
        """Map facts ``(B, K, F)`` to logits ``(B, K)``, zero in padding."""
        known, norm = facts[valid], self.standardise
        if self.training and len(known) < 2 and not _synced(norm):  # no statistics of their own
            known = batch_norm(known, norm.running_mean, norm.running_var)
        else:
            known = norm(known)  # one that is synced must be called on every rank
        present = known.new_zeros(valid.shape)
        present[valid] = self.tell(known)[:, 0]
        return present


def _synced(norm: nn.Module) -> bool:
    """Whether a norm takes the statistics of other processes with its own."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return several and isinstance(norm, nn.SyncBatchNorm)


def _highest(answers: Tensor, left_out: Tensor) -> Tensor:
    """Return the highest answer at each place, ``(B, K, heads, h, w)``.

    Args:
        answers: ``(B, R, heads, h, w)``.
        left_out: ``(B, K, R)`` bool.
    """
    columns = left_out.unbind(dim=1)
    lowest = answers.amin()  # where every rival is the name itself
    highest = [
        torch.where(column[..., None, None, None], lowest, answers).amax(1) for column in columns
    ]
    return torch.stack(highest, dim=1)
