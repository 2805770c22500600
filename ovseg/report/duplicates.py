"""Near duplicates among many images, by perceptual hashes that differ in few bits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

NEAR = 3
"""Hashes that differ in so many of their 64 bits, or in fewer, are those of near duplicates."""


class Duplicates(NamedTuple):
    """What is alike among hashed images.

    Attributes:
        images: How many have a near duplicate.
        pairs: How many pairs differ in 0, 1, ... `NEAR` bits.
        examples: Positions of two images and in how many bits they differ, closest first; of
            many images with one hash a single pair.
    """

    images: int
    pairs: list[int]
    examples: list[tuple[int, int, int]]


def difference_hash(image: Image.Image) -> int:
    """Return a dHash of 64 bits: which of 9x8 grey pixels are darker than their right neighbour."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return int.from_bytes(np.packbits(grey[:, :-1] < grey[:, 1:]).tobytes())


def near_duplicates(hashes: np.ndarray, limit: int) -> Duplicates:
    """Find the pairs that differ in at most `NEAR` bits.

    Args:
        hashes: ``(N,)`` uint64.
        limit: Most examples.
    """
    unique, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    one, other = near_pairs(unique)
    bits = np.bitwise_count(unique[one] ^ unique[other])
    pairs = np.bincount(bits, counts[one] * counts[other], minlength=NEAR + 1).astype(int)
    pairs[0] += (counts * (counts - 1) // 2).sum()
    alike = counts > 1
    same = alike.nonzero()[0]
    alike[one] = alike[other] = True
    by_hash = np.argsort(inverse, kind="stable")
    first = np.cumsum(counts) - counts
    examples = [(by_hash[first[i]], by_hash[first[i] + 1], 0) for i in same[:limit]]
    for i in np.argsort(bits, kind="stable")[: limit - len(examples)]:
        examples.append((by_hash[first[one[i]]], by_hash[first[other[i]]], bits[i]))
    plain = [tuple(map(int, example)) for example in examples]
    return Duplicates(int(counts[alike].sum()), pairs.tolist(), plain)


def near_pairs(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions ``(P,)``, ``(P,)`` of all pairs that differ in at most `NEAR` bits.

    Of NEAR + 1 bands of bits, such a pair has at least one in common: only hashes with a common
    band are compared.

    Args:
        hashes: ``(N,)`` uint64, all different.
    """
    width = 64 // (NEAR + 1)
    found = [np.zeros((0, 2), dtype=int)]
    for band in range(NEAR + 1):
        bands = (hashes >> np.uint64(band * width)) & np.uint64(2**width - 1)
        order = np.argsort(bands, kind="stable")
        bands = bands[order]
        step, left = 1, np.arange(len(hashes) - 1)
        while len(left):  # each with the one that stands `step` places on, while the band is common
            left = left[bands[left] == bands[left + step]]
            pairs = np.stack([order[left], order[left + step]], axis=1)
            bits = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
            found.append(np.sort(pairs[bits <= NEAR], axis=1))
            step += 1
            left = left[left + step < len(hashes)]
    one, other = np.unique(np.concatenate(found), axis=0).T
    return one, other
