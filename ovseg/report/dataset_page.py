"""The page of a dataset: its facts, numbers of its classes, and a gallery to filter."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ovseg.quality import Facts, kinds_of
from ovseg.report.dataset import AREAS, SCORES, Tally
from ovseg.report.duplicates import Duplicates
from ovseg.report.page import load_template, load_text
from ovseg.report.pictures import overlay
from ovseg.structures import IGNORE

THUMBNAIL = 256
"""Longest side of a shown image in pixels."""

MOST_CLASSES = 60
"""Rows and columns of the table of pairs of classes."""


@dataclass
class Card:
    """One shown sample.

    Attributes:
        title: Shard and key.
        prompt: What was asked.
        keys: Classes of its K entities.
        class_ids: Their ids.
        facts: What is known of each.
        verdict: What is wrong with each, "" if nothing.
        image: Data URI.
        layer: Data URI of the label map as a layer over the image.
    """

    title: str
    prompt: str
    keys: list[str]
    class_ids: list[int]
    facts: list[Facts]
    verdict: list[str]
    image: str
    layer: str

    @property
    def kept(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.verdict)

    @property
    def rows(self) -> list[tuple[str, int, Facts, str]]:
        """Class, its id, facts and verdict of each entity."""
        return list(zip(self.keys, self.class_ids, self.facts, self.verdict, strict=True))

    def for_filters(self) -> dict:
        """Return what the page's script filters by."""
        scores = [facts.score if facts.found else None for facts in self.facts]
        reasons = sorted({kind for why in self.verdict for kind in kinds_of(why)})
        return {
            "verdicts": ["rejected", *reasons] if reasons else ["kept"],
            "entities": list(zip(self.keys, scores, strict=True)),
        }


@dataclass
class Report:
    """What a page shows.

    Attributes:
        title: Name of the dataset.
        about: Facts of the whole, ``{what: value}``.
        numbers: `Yield.describe` of it.
        kept: Numbers of the samples that were kept.
        rejected: Numbers of the others.
        unseen: Keys of the classes of which the annotator has seen no mask.
        hashed: How many kept samples were searched for near duplicates.
        duplicates: What was found.
        examples: Two samples that are near duplicates, and in how many bits they differ.
        cards: The gallery.
    """

    title: str
    about: Mapping[str, str]
    numbers: dict
    kept: Tally
    rejected: Tally
    unseen: set[str]
    hashed: int
    duplicates: Duplicates
    examples: list[tuple[Card, Card, int]]
    cards: list[Card]


def render(report: Report) -> str:
    """Return the HTML page of a dataset."""
    filtered = [card.for_filters() for card in report.cards]
    classes = sorted(report.kept.classes.items())
    scores = bin_names([f"{bound:g}" for bound in SCORES])
    histogram = list(zip(scores, report.kept.scores, report.rejected.scores, strict=True))
    frequent = report.kept.most_frequent(MOST_CLASSES)
    together = report.kept.together(frequent)
    return load_template("dataset.html").render(
        style=load_text("page.css") + load_text("dataset.css"),
        script=load_text("dataset.js"),
        report=report,
        filtered=filtered,
        verdicts=_verdicts(filtered),
        all_classes=sorted(report.kept.classes.keys() | report.rejected.classes.keys()),
        areas=bin_names([f"{100 * bound:g}" for bound in AREAS]),
        areas_of=[(key, numbers.areas) for key, numbers in classes],
        scores=scores,
        scores_of=[(key, numbers.scores) for key, numbers in classes],
        histogram=histogram,
        highest=max(1, *(kept + rejected for _, kept, rejected in histogram)),
        frequent=frequent,
        together=together,
        most=max((max(row) for row in together), default=0),
        color=lambda class_id: "#{:02x}{:02x}{:02x}".format(*color_of(class_id)),
    )


def bin_names(bounds: Sequence[str]) -> list[str]:
    """Return the names of the bins between bounds.

    >>> bin_names(["1", "2"])
    ['< 1', '1–2', '≥ 2']
    """
    between = [f"{low}–{high}" for low, high in zip(bounds, bounds[1:], strict=False)]
    return [f"< {bounds[0]}", *between, f"≥ {bounds[-1]}"]


def thumbnail(image: Image.Image, side: int = THUMBNAIL) -> str:
    """Return an RGB image as a data URI, made smaller if its longest side is more than that."""
    small = image.copy()
    small.thumbnail((side, side))
    return _webp(small, quality=80)


def layer(label_map: Image.Image) -> str:
    """Return a label map as the data URI of a layer over its thumbnail: a colour per class."""
    small = label_map.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.NEAREST)
    labels = np.asarray(small)
    painted = np.zeros((*labels.shape, 4), dtype=np.uint8)
    for class_id in np.unique(labels[labels > 0]).tolist():
        mask = labels == class_id
        painted[mask] = overlay(mask, color_of(class_id))[mask]
    return _webp(Image.fromarray(painted), lossless=True)


def color_of(class_id: int) -> tuple[int, int, int]:
    """Return RGB of a class; grey for what is ignored or has no class."""
    if class_id in (0, IGNORE):
        return 128, 128, 128
    red, green, blue = colorsys.hsv_to_rgb(class_id * 0.381966 % 1, 0.85, 1 - class_id % 3 * 0.15)
    return round(255 * red), round(255 * green), round(255 * blue)


def _webp(image: Image.Image, **options) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _verdicts(filtered: Sequence[dict]) -> list[str]:
    """Return the choices of verdicts: the two, then the reasons that occur."""
    there = {verdict for card in filtered for verdict in card["verdicts"]}
    first = [verdict for verdict in ("kept", "rejected") if verdict in there]
    return [*first, *sorted(there.difference(first))]
