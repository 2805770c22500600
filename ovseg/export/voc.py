"""PASCAL VOC's layout: palette PNGs, and lists of names."""

from __future__ import annotations

import io
from pathlib import Path

from ovseg.export.format import TRAIN, VAL, Format, Item
from ovseg.report.pictures import voc_picture
from ovseg.vocabulary import Vocabulary


class VOC(Format):
    """``JPEGImages``, ``SegmentationClass`` and ``ImageSets/Segmentation``; images stay PNGs."""

    def __init__(self, folder: Path, vocabulary: Vocabulary, manifest: dict) -> None:
        super().__init__(folder, vocabulary, manifest)
        self.keys: dict[str, list[str]] = {TRAIN: [], VAL: []}

    def add(self, item: Item) -> None:
        """Write the image as it is, and its label map with VOC's palette."""
        buffer = io.BytesIO()
        voc_picture(item.sample.mask).save(buffer, format="PNG")
        self.write(f"JPEGImages/{item.key}.png", item.files["image.png"])
        self.write(f"SegmentationClass/{item.key}.png", buffer.getvalue())
        self.keys[item.part].append(item.key)

    def finish(self) -> dict:
        """Write the lists."""
        for part, keys in self.keys.items():
            self.write(f"ImageSets/Segmentation/{part}.txt", "".join(f"{key}\n" for key in keys))
        return {}
