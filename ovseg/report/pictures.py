"""Pictures of a report: images, label maps over them, and their place on disk."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ovseg.structures import IGNORE, Batch

Palette = Sequence[tuple[int, int, int]]

IGNORED = (224, 224, 192)
"""Colour of pixels that are ignored, as PASCAL VOC paints them; no shipped class looks like it."""


@dataclass
class Picture:
    """One image and the label maps that belong to it.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        maps: ``{title: (H, W) integer class ids, 255 = ignore}``, e.g. "truth" and "prediction".
        caption: What it shows, e.g. the prompt.
    """

    image: np.ndarray
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    caption: str = ""

    @classmethod
    def of(cls, batch: Batch, row: int, **maps: Tensor) -> Picture:
        """Copy an image of a batch, without the padding that its neighbours gave it.

        Args:
            batch: Images, their sizes if they were padded, and their prompts if they have some.
            row: Which image.
            maps: Its label maps ``(H, W)`` by title, padded as the image is.
        """
        image = batch.images[row].permute(1, 2, 0)
        whole = tuple(image.shape[:2])
        height, width = whole if batch.sizes is None else batch.sizes[row].tolist()

        def own(values: Tensor) -> np.ndarray:
            return values[:height, :width].cpu().numpy().copy()

        return cls(
            image=own(image),
            maps={title: own(labels) for title, labels in maps.items()},
            caption=batch.requests[row].prompt if batch.requests else "",
        )

    def save(self, folder: str | Path, key: str) -> None:
        """Write ``KEY.json``, ``KEY.image.png`` and ``KEY.<title>.png`` (ids) into the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.image).save(folder / f"{key}.image.png")
        for title, labels in self.maps.items():
            Image.fromarray(labels.astype(np.uint16)).save(folder / f"{key}.{title}.png")
        (folder / f"{key}.json").write_text(
            json.dumps({"caption": self.caption, "maps": list(self.maps)}), encoding="utf-8"
        )

    @classmethod
    def load(cls, path: str | Path) -> Picture:
        """Read a picture back from the path of its JSON."""
        path = Path(path)
        facts = json.loads(path.read_text(encoding="utf-8"))
        stem = path.with_suffix("")
        return cls(
            image=np.asarray(Image.open(f"{stem}.image.png").convert("RGB")),
            maps={title: np.asarray(Image.open(f"{stem}.{title}.png")) for title in facts["maps"]},
            caption=facts["caption"],
        )


def load_pictures(folder: str | Path, count: int | None = None) -> list[Picture]:
    """Read the first pictures of a folder in the order of their keys; none if it does not exist."""
    return [Picture.load(path) for path in sorted(Path(folder).glob("*.json"))[:count]]


def data_uri(pixels: np.ndarray) -> str:
    """Encode ``(H, W, 3 or 4)`` uint8 as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def colorize(labels: np.ndarray, palette: Palette) -> np.ndarray:
    """Paint a label map: ``(H, W)`` ids to ``(H, W, 3)`` uint8, what has no class as `IGNORED`."""
    table = np.full((256, 3), IGNORED, dtype=np.uint8)
    table[: len(palette)] = np.asarray(palette, dtype=np.uint8)
    return table[np.minimum(labels, IGNORE).astype(np.uint8)]


@cache
def voc_color(number: int) -> tuple[int, int, int]:
    """Return the colour of PASCAL VOC's palette: the bits of the number, dealt to three bytes."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return tuple(color)


def voc_picture(labels: np.ndarray) -> Image.Image:
    """Return ``(H, W)`` uint8 ids as a picture of these ids with PASCAL VOC's palette."""
    picture = Image.fromarray(labels)
    picture.putpalette([value for number in range(256) for value in voc_color(number)])
    return picture


def overlay(mask: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Paint a mask as a layer: ``(H, W)`` bool to ``(H, W, 4)`` uint8, its inner edge opaque."""
    inner = mask.copy()
    for axis in (0, 1):
        for step in (1, -1):
            inner &= np.roll(mask, step, axis) | _border(mask.shape, axis, step)
    layer = np.zeros((*mask.shape, 4), dtype=np.uint8)
    layer[..., :3] = color
    layer[..., 3] = np.where(inner, 120, np.where(mask, 255, 0))
    return layer


def _border(shape: tuple[int, int], axis: int, step: int) -> np.ndarray:
    """Pixels whose neighbour lies outside of the image: no edge is drawn there."""
    border = np.zeros(shape, dtype=bool)
    border[(slice(None),) * axis + (0 if step == 1 else -1,)] = True
    return border
