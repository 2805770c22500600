"""Losses of label maps: for labels that may be wrong, and for masks of seen classes alone."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.losses import mean_count
from ovseg.structures import IGNORE
from ovseg.vocabulary import Vocabulary


class PixelLoss(nn.Module, ABC):
    """A loss of each pixel, averaged over those that are not ignored, on all ranks together."""

    def bind(self, vocabulary: Vocabulary) -> None:  # noqa: B027 - most need no names
        """Take the classes; a segmentation module calls it once, before training."""

    @abstractmethod
    def each(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each pixel.

        Args:
            log_probabilities: ``(P, N)``, of the classes.
            labels: ``(P,)`` int64, none ignored.

        Returns:
            ``(P,)``.
        """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss, a zero with a gradient if every pixel is ignored.

        Args:
            logits: ``(B, N, H, W)``.
            labels: ``(B, H, W)`` int64, 255 = ignore.
        """
        counted = labels != IGNORE
        rows = logits.float().movedim(1, -1)[counted]
        losses = self.each(F.log_softmax(rows, dim=1), labels[counted])
        return losses.sum() / mean_count(counted.sum())


class CrossEntropy(PixelLoss):
    """Cross-entropy: minus the log of the probability of the label."""

    def each(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each pixel ``(P,)``."""
        return _at(log_probabilities, labels).neg()


class Bootstrapped(PixelLoss):
    """Hard bootstrapping (Reed et al. 2015, arXiv 1412.6596, equation 6).

    The target of a pixel is `trust` times its label plus (1 - trust) times the class that the
    network finds most probable, so that labels it is sure to be wrong pull less.

    Args:
        trust: Beta of the paper, which takes 0.8; 1 is cross-entropy.

    Raises:
        ValueError: If it is not in [0, 1].
    """

    def __init__(self, trust: float = 0.8) -> None:
        super().__init__()
        if not 0 <= trust <= 1:
            raise ValueError(f"trust must be in [0, 1], got {trust}")
        self.trust = trust

    def each(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each pixel ``(P,)``."""
        said = log_probabilities.amax(dim=1)
        return -self.trust * _at(log_probabilities, labels) - (1 - self.trust) * said


class SymmetricCrossEntropy(PixelLoss):
    """Symmetric cross-entropy (Wang et al. 2019, arXiv 1908.06112, section 3).

    Cross-entropy plus its reverse, where prediction and label change places. With log 0 set to a
    number A, the reverse is -A times the probability of all classes but the label's: bounded, so
    that a wrong label can pull only so much.

    Args:
        cross_entropy: Weight of cross-entropy (alpha).
        reverse: Weight of the reverse (beta).
        log_zero: A.

    Raises:
        ValueError: If a weight is negative, or log_zero is not.
    """

    def __init__(
        self, cross_entropy: float = 1.0, reverse: float = 1.0, log_zero: float = -4.0
    ) -> None:
        super().__init__()
        if cross_entropy < 0 or reverse < 0 or log_zero >= 0:
            raise ValueError(
                "cross_entropy and reverse must be >= 0 and log_zero < 0, got "
                f"{cross_entropy}, {reverse} and {log_zero}"
            )
        self.cross_entropy, self.reverse, self.log_zero = cross_entropy, reverse, log_zero

    def each(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each pixel ``(P,)``."""
        right = _at(log_probabilities, labels)
        return -self.cross_entropy * right - self.reverse * self.log_zero * (1 - right.exp())


class UnseenWherePresent(PixelLoss):
    """Leave unseen classes out of the softmax of every image whose labels hold none of them.

    Where masks were drawn for seen classes alone, no label is ever an unseen class. Under a plain
    softmax each of these pixels lowers every unseen class, until the network takes all that looks
    like these pictures for seen. Here such an image only tells seen classes and background apart.

    Args:
        loss: Of the classes that are left; cross-entropy by default.
    """

    def __init__(self, loss: PixelLoss | None = None) -> None:
        super().__init__()
        self.loss = loss or CrossEntropy()
        self.unseen: Tensor | None = None

    def bind(self, vocabulary: Vocabulary) -> None:
        """Take the unseen classes."""
        self.unseen = torch.tensor(vocabulary.unseen)

    def each(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each pixel ``(P,)``."""
        return self.loss.each(log_probabilities, labels)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss, as `PixelLoss` does.

        Raises:
            RuntimeError: If it was not bound to the classes.
        """
        if self.unseen is None:
            raise RuntimeError("UnseenWherePresent needs the classes: call bind(vocabulary) first")
        unseen = self.unseen.to(labels.device)
        absent = ~torch.isin(labels, unseen).flatten(1).any(dim=1)
        channels = torch.isin(torch.arange(logits.shape[1], device=labels.device), unseen)
        left_out = (absent[:, None] & channels)[..., None, None]
        return super().forward(logits.masked_fill(left_out, -torch.inf), labels)


def ignore_borders(labels: Tensor, band: int) -> Tensor:
    """Set to ignore what lies within some pixels of a pixel with another label.

    The distance is the larger one of rows and columns. Ignored pixels border nothing.

    Args:
        labels: ``(B, H, W)`` int64, 255 = ignore.
        band: Pixels on each side; 0 changes nothing.

    Returns:
        ``(B, H, W)`` int64.
    """
    if band == 0:
        return labels
    ids, ignored = labels[:, None].float(), (labels == IGNORE)[:, None]
    window = {"kernel_size": 2 * band + 1, "stride": 1, "padding": band}
    highest = F.max_pool2d(ids.masked_fill(ignored, -IGNORE), **window)
    lowest = -F.max_pool2d((-ids).masked_fill(ignored, -IGNORE), **window)
    return labels.masked_fill((highest > lowest)[:, 0], IGNORE)


def _at(rows: Tensor, labels: Tensor) -> Tensor:
    """Return the entry ``(P,)`` of each row ``(P, N)`` at its label."""
    return rows.gather(1, labels[:, None])[:, 0]
