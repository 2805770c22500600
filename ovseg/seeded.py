"""Draws of others' code that has no generator of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np


@contextmanager
def seeded(key: Sequence[int]) -> Iterator[None]:
    """Seed the generators that transforms draw from, and put them back."""
    before = np.random.get_state(), random.getstate()
    first, second = np.random.SeedSequence(key).generate_state(2)
    np.random.seed(first)
    random.seed(int(second))
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])
