"""Samples that cannot be read: how many a training may go on without."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import chain
from typing import TypeVar

Sample = TypeVar("Sample")

ALWAYS = 10
"""Damaged samples that stop nothing, however few have been read, if any are allowed at all."""


class DamagedSample(ValueError):
    """A sample whose bytes are not what was written."""


class Tolerance:
    """Take the next good sample for a damaged one, as long as these are few.

    Args:
        share: Of the samples that this process has read, how many may be damaged.

    Raises:
        ValueError: If the share is not in [0, 1).
    """

    def __init__(self, share: float) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"max_damaged is a share of the samples in [0, 1), got {share}")
        self.share = share
        self._read = 0
        self._damaged: set[int] = set()

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
        for other in chain(range(position, size), range(position)):
            if other in self._damaged:
                continue
            self._read += 1
            try:
                return other, read(other)
            except DamagedSample as error:
                self._count(other, error)
        raise ValueError(f"all {size} samples are damaged: make the dataset again")

    def _count(self, position: int, error: DamagedSample) -> None:
        if not self.share:
            raise error
        self._damaged.add(position)
        count = len(self._damaged)
        if count > max(ALWAYS, self.share * self._read):
            raise ValueError(
                f"{count} of {self._read} samples are damaged, max_damaged allows "
                f"{self.share:g} of them: make the dataset again; the last was {error}"
            )
        warnings.warn(f"{error}: the next good one is taken instead", stacklevel=2)
