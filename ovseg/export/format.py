"""What an export format is: a few files per sample, and what ties them together at the end."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ovseg.data.shard_format import StoredSample
from ovseg.structures import IGNORE
from ovseg.vocabulary import Vocabulary

TRAIN, VAL = "train", "val"


class Item(NamedTuple):
    """One sample to export.

    Attributes:
        key: As in the shards, eight digits.
        part: "train" or "val".
        files: The bytes of its members by extension, e.g. "image.png".
        sample: The same as arrays, checked.
    """

    key: str
    part: str
    files: dict[str, bytes]
    sample: StoredSample


class Format(ABC):
    """Writes samples, one after the other, into an empty folder.

    Args:
        folder: The folder.
        vocabulary: The dataset's classes.
        manifest: Its `dataset.json`.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, manifest: dict) -> None:
        self.folder, self.vocabulary, self.manifest = folder, vocabulary, manifest

    @abstractmethod
    def add(self, item: Item) -> None:
        """Write one sample."""

    @abstractmethod
    def finish(self) -> dict:
        """Write what could not be known before, and return facts for `export.json`."""

    def write(self, path: str, data: bytes | str) -> None:
        """Write a file, its path relative to the folder."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.encode() if isinstance(data, str) else data)


def part_of(key: str, val_share: float) -> str:
    """Return "val" for about this share of all keys, else "train"; a key stays where it is.

    Args:
        key: Of a sample.
        val_share: In [0, 1).
    """
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return VAL if number < val_share * 2**64 else TRAIN


def segments_of(sample: StoredSample) -> list[tuple[int, np.ndarray]]:
    """Return class id and mask of each object of a sample.

    Objects are told apart by the stored instance numbers. Without them, and where a class's pixels
    have none, a class is one object. Background and ignored pixels belong to none.

    Returns:
        Pairs in the order of classes and numbers; masks are ``(H, W)`` bool.
    """
    mask = sample.mask.astype(np.int64)
    numbers = 0 if sample.instances is None else sample.instances.astype(np.int64)
    both = np.where((mask > 0) & (mask != IGNORE), mask << 16 | numbers, 0)
    return [(int(value) >> 16, both == value) for value in np.unique(both[both > 0])]
