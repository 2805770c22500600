"""Samples that cannot be read: how many a training may go on without."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import chain
from typing import TypeVar

import torch

Sample = TypeVar("Sample")

ALWAYS = 10
"""Damaged samples that stop nothing, however few have been read, if any are allowed at all."""
AGAIN = "delete such shards and run `predict` again, which makes them anew"


class DamagedSample(ValueError):
    """A sample whose bytes are not what was written."""


class Tolerance:
    """Take the next good sample for a damaged one, as long as these are few.

    The workers of a process, and its epochs, count together.

    Args:
        share: Of the samples that this process has read, how many may be damaged.

    Raises:
        ValueError: If the share is not in [0, 1).
    """

    def __init__(self, share: float) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"max_damaged is a share of the samples in [0, 1), got {share}")
        self.share = share
        self._read = torch.zeros((), dtype=torch.int64).share_memory_()
        self.begin(0)

    def begin(self, size: int) -> None:
        """Make room for so many samples; before workers are forked, who then count in it too."""
        self._damaged = torch.zeros(size, dtype=torch.bool).share_memory_()

    def read(self, position: int, size: int, read: Callable[[int], Sample]) -> tuple[int, Sample]:
        """Return the first good sample from a position on, and where it stands.

        Args:
            position: Where to begin.
            size: Number of positions; after the last comes the first.
            read: Reads a sample, or raises `DamagedSample`.

        Raises:
            DamagedSample: If none may be damaged.
            ValueError: If too many are.
        """
        if not self.share:  # nothing is to be counted
            try:
                return position, read(position)
            except DamagedSample as error:
                raise DamagedSample(f"{error}; {AGAIN}, or allow some by max_damaged") from error
        if len(self._damaged) < size:
            self.begin(size)
        for other in chain(range(position, size), range(position)):
            if self._damaged[other]:
                continue
            self._read += 1
            try:
                return other, read(other)
            except DamagedSample as error:
                self._count(other, error)
        raise ValueError(f"all {size} samples are damaged: {AGAIN}")

    def _count(self, position: int, error: DamagedSample) -> None:
        self._damaged[position] = True
        count, read = int(self._damaged.sum()), int(self._read)
        if count > max(ALWAYS, self.share * read):
            raise ValueError(
                f"{count} of {read} samples are damaged, max_damaged allows {self.share:g} of "
                f"them: {AGAIN}; the last was {error}"
            )
        warnings.warn(
            f"{error}: the next good one is taken instead ({count} damaged so far)", stacklevel=2
        )
