"""The page of the images of a test on which a segmenter fared worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ovseg.report.dataset_page import thumbnail
from ovseg.report.page import load_template, load_text
from ovseg.report.pictures import IGNORED, Picture, colorize, data_uri
from ovseg.structures import IGNORE
from ovseg.vocabulary import Vocabulary

SIDE = 480
"""Longest side of a shown photograph in pixels."""


@dataclass(frozen=True)
class WorstImage:
    """An image and how it was scored.

    Attributes:
        score: Mean IoU in percent over the classes that are in the image or were predicted.
        index: Its number in the stream.
        iou: IoU in percent of each of these classes, by id.
        picture: Image, and the maps "truth" (pixels that are not scored are 255) and "prediction".
    """

    score: float
    index: int
    iou: Mapping[int, float]
    picture: Picture

    @property
    def order(self) -> tuple[float, int]:
        """The worst come first, equals by their number."""
        return self.score, self.index


def render(stream: str, images: Sequence[WorstImage], tested: int, vocabulary: Vocabulary) -> str:
    """Return the HTML page of a stream's worst images.

    Args:
        stream: Its name.
        images: The worst ones, in order.
        tested: How many there were.
        vocabulary: Gives colours, names and the unseen classes.
    """
    return load_template("worst.html").render(
        style=load_text("page.css"),
        stream=stream,
        images=images,
        tested=tested,
        vocabulary=vocabulary,
        thumbnail=lambda image: thumbnail(Image.fromarray(image), SIDE),
        paint=lambda labels: data_uri(_small(colorize(labels, vocabulary.palette))),
        legend=lambda maps: _legend(maps.values(), vocabulary),
    )


def _small(pixels: np.ndarray) -> np.ndarray:
    """Return a painted map at most as large as its photograph is shown."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.NEAREST)
    return np.asarray(picture)


def _legend(maps, vocabulary: Vocabulary) -> list[tuple[int, str, str]]:
    """Return id, name and colour of what occurs in label maps."""
    ids = sorted({int(i) for labels in maps for i in np.unique(labels)})
    colors = [IGNORED if i == IGNORE else vocabulary.palette[i] for i in ids]
    names = ["not scored" if i == IGNORE else vocabulary.names[i] for i in ids]
    painted = ("#{:02x}{:02x}{:02x}".format(*rgb) for rgb in colors)
    return list(zip(ids, names, painted, strict=True))
