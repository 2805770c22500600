"""YOLO's segmentation format: polygons in text files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from ovseg.errors import importing_mmseg
from ovseg.export.format import TRAIN, VAL, Format, Item, segments_of
from ovseg.vocabulary import Vocabulary

with importing_mmseg():  # OpenCV comes with it
    import cv2


class YOLO(Format):
    """``images``, ``labels``, each with ``train`` and ``val``, and `data.yaml`.

    A polygon has no holes: what an object surrounds is filled. Each connected piece of an object is
    a polygon of its own, in shares of width and height. There is no ignore: it becomes background.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, manifest: dict) -> None:
        super().__init__(folder, vocabulary, manifest)
        self.polygons = self.filled = self.pixels = 0

    def add(self, item: Item) -> None:
        """Write the image as it is, and a line per polygon."""
        lines = []
        for class_id, mask in segments_of(item.sample):
            outer = outlines(mask)
            lines += [f"{class_id - 1} {_coordinates(o, mask.shape)}\n" for o in outer]
            self.pixels += int(mask.sum())
            self.filled += int((fill(outer, mask.shape) & ~mask).sum())
        self.polygons += len(lines)
        self.write(f"images/{item.part}/{item.key}.png", item.files["image.png"])
        self.write(f"labels/{item.part}/{item.key}.txt", "".join(lines))

    def finish(self) -> dict:
        """Write `data.yaml`, and return how many pixels of holes were filled."""
        names = {c.id - 1: c.key for c in self.vocabulary.classes}
        data = {TRAIN: f"images/{TRAIN}", VAL: f"images/{VAL}", "names": names}
        for part in (TRAIN, VAL):  # a reader wants both folders
            (self.folder / data[part]).mkdir(parents=True, exist_ok=True)
        self.write("data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
        return {
            "polygons": self.polygons,
            "pixels_of_objects": self.pixels,
            "pixels_of_filled_holes": self.filled,
        }


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Return the outline of every connected piece of a mask.

    Args:
        mask: ``(H, W)`` bool.

    Returns:
        Of each ``(N, 2)`` int columns and rows of pixels on its edge, N >= 3.
    """
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = [contour[:, 0] for contour in found]
    return [np.pad(p, ((0, max(0, 3 - len(p))), (0, 0)), mode="edge") for p in points]


def fill(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels that polygons cover, ``shape`` bool."""
    canvas = np.zeros(shape, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [polygon.astype(np.int32)], 1)
    return canvas.astype(bool)


def _coordinates(polygon: np.ndarray, shape: tuple[int, int]) -> str:
    """Return "x y x y ...", inside the pixels: readers that round and those that cut off agree."""
    shares = (polygon + 0.25) / (shape[1], shape[0])
    return " ".join(f"{share:.6f}" for share in shares.ravel())
