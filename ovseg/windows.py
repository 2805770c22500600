"""Where in a photograph of any size a model sees each name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovseg.pipeline import GroundedDiffusion

Box = tuple[int, int, int, int]


def windows(width: int, height: int) -> list[Box]:
    """Cut an image into squares as high as its shorter side, each half over the next or more.

    Returns:
        (left, top, right, bottom) in pixels; together they cover the image.
    """
    side, long = min(width, height), max(width, height)
    count = 1 if long == side else -(-(long - side) // max(1, side // 2)) + 1
    starts = [round(i * (long - side) / max(1, count - 1)) for i in range(count)]
    if width >= height:
        return [(s, 0, s + side, side) for s in starts]
    return [(0, s, side, s + side) for s in starts]


def see(
    model: GroundedDiffusion,
    photo: Image.Image,
    names: Sequence[str],
    prompt: str = "",
    seed: int = 0,
    samples: int = 1,
    tiled: bool = False,
) -> Iterator[NDArray[np.float32]]:
    """Yield the probability ``(H, W)`` of each name at the photo's own size.

    Args:
        model: Sees pictures of one size; the photo is brought to it.
        photo: RGB, of any size.
        names: Names to find.
        prompt: As in `GroundedDiffusion.ground`.
        seed: Seed of the first noise sample.
        samples: Noise samples whose probabilities are averaged.
        tiled: Look at overlapping squares (`windows`) instead of the whole photo made square.
    """
    boxes = windows(*photo.size) if tiled else [(0, 0, *photo.size)]
    size = (model.backbone.image_size,) * 2
    seen = []
    for box in boxes:
        view = photo.resize(size, Image.Resampling.BICUBIC, box=box)
        found = model.ground([view] * samples, names, prompt, seed)
        seen.append({name: found.probabilities[name].mean(0) for name in names})
    for name in names:
        total = np.zeros((photo.height, photo.width), np.float32)
        weight = np.zeros_like(total)
        for (left, top, right, bottom), maps in zip(boxes, seen, strict=True):
            area = Image.fromarray(maps[name]).resize(
                (right - left, bottom - top), Image.Resampling.BILINEAR
            )
            total[top:bottom, left:right] += np.asarray(area)
            weight[top:bottom, left:right] += 1
        yield total / weight
