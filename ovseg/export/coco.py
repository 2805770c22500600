"""COCO's instances and panoptic formats."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from ovseg.export.format import TRAIN, VAL, Format, Item, segments_of
from ovseg.vocabulary import Vocabulary

BACKGROUND = 0
"""The panoptic category of pixels that are no object; void are the ignored ones."""


class COCO(Format):
    """``train``, ``val`` and ``annotations``; category ids are the vocabulary's class ids.

    ``instances_PART.json`` has a run-length mask per object. ``panoptic_PART.json`` and its PNGs
    have the background too, as a stuff category, so that they give back the label map.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, manifest: dict) -> None:
        super().__init__(folder, vocabulary, manifest)
        self.images: dict[str, list[dict]] = {TRAIN: [], VAL: []}
        self.instances: dict[str, list[dict]] = {TRAIN: [], VAL: []}
        self.panoptic: dict[str, list[dict]] = {TRAIN: [], VAL: []}
        self.numbered = True

    def add(self, item: Item) -> None:
        """Write the image as it is and the panoptic PNG, and keep the annotations."""
        self.numbered &= item.sample.instances is not None
        height, width = item.sample.mask.shape
        name, number = f"{item.key}.png", int(item.key)
        size = {"width": width, "height": height}
        self.images[item.part].append({"id": number, "file_name": name, **size})
        objects = segments_of(item.sample)
        for class_id, mask in objects:
            kept = self.instances[item.part]
            facts = {"id": len(kept) + 1, "image_id": number, **facts_of(class_id, mask)}
            kept.append(facts | {"segmentation": encode(mask)})
        rest = item.sample.mask == BACKGROUND
        regions = [(BACKGROUND, rest)] * bool(rest.any()) + objects
        ids = np.zeros((height, width), np.uint32)
        for place, (_, mask) in enumerate(regions, start=1):
            ids[mask] = place
        infos = [{"id": n, **facts_of(*region)} for n, region in enumerate(regions, start=1)]
        facts = {"image_id": number, "file_name": name, "segments_info": infos}
        self.panoptic[item.part].append(facts)
        self.write(f"{item.part}/{name}", item.files["image.png"])
        self.write(f"annotations/panoptic_{item.part}/{name}", _png(ids))

    def finish(self) -> dict:
        """Write the annotations, and return what an annotation is."""
        what = "one object" if self.numbered else "all of a class in an image: no instances stored"
        head = {"info": {"description": f"ovseg export; an annotation is {what}"}, "licenses": []}
        classes = [{"id": c.id, "name": c.key} for c in self.vocabulary.classes]
        things = [c | {"isthing": int(self.numbered)} for c in classes]
        regions = [{"id": BACKGROUND, "name": "background", "isthing": 0}, *things]
        for part, images in self.images.items():
            for kind, made, categories in (
                ("instances", self.instances[part], classes),
                ("panoptic", self.panoptic[part], regions),
            ):
                content = {"images": images, "annotations": made, "categories": categories}
                text = json.dumps({**head, **content}, ensure_ascii=False)
                self.write(f"annotations/{kind}_{part}.json", text)
        return {"annotation": what}


def facts_of(class_id: int, mask: np.ndarray) -> dict:
    """Return category, area and box of a mask ``(H, W)`` bool that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
    return {"category_id": class_id, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}


def encode(mask: np.ndarray) -> dict:
    """Return a mask ``(H, W)`` bool as COCO's compressed run lengths."""
    coded = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"size": coded["size"], "counts": coded["counts"].decode("ascii")}


def _png(ids: np.ndarray) -> bytes:
    """Return ids as a PNG of R + 256 G + 65536 B."""
    buffer = io.BytesIO()
    colors = np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    Image.fromarray(colors).save(buffer, format="PNG")
    return buffer.getvalue()
