"""A folder of images without labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ovseg.data.base import Stream
from ovseg.photos import find_photos, load_photo
from ovseg.structures import IGNORE, Batch


class ImageFolder(Stream):
    """The images of a folder, square; every label is ignore.

    Args:
        path: Folder of photographs, of any size and mode.
        size: Height and width that they are brought to: scaled, then cut at the middle.

    Raises:
        FileNotFoundError: If there is no image.
        ValueError: If size is not positive.
    """

    def __init__(self, path: str, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be >= 1, got {size}")
        self.paths, self.size = find_photos([Path(path)]), size

    def describe(self) -> dict:
        """Return the size, and a digest of the files' names and content."""
        total = hashlib.sha256()
        for path in self.paths:
            total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return {**super().describe(), "size": self.size, "digest": total.hexdigest()[:16]}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        """Read these images.

        Raises:
            ValueError: If one cannot be decoded.
        """
        images = np.stack([self._read(int(position)) for position in positions])
        return Batch(
            indices=torch.as_tensor(list(positions), dtype=torch.long),
            images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            labels=torch.full((len(images), self.size, self.size), IGNORE),
        )

    def _read(self, position: int) -> np.ndarray:
        photo = load_photo(self.paths[position])
        square = ImageOps.fit(photo, (self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(square)
