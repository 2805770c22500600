"""The page: sections filled into one HTML file without external resources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from ovseg.report import numbers
from ovseg.report.bars import bars
from ovseg.report.pictures import Picture, colorize, data_uri, overlay
from ovseg.structures import IGNORE
from ovseg.vocabulary import Vocabulary


@dataclass
class Gallery:
    """The pictures of a report.

    Attributes:
        grounded: Titles of groups and their pictures, each with a "prediction" map.
        synthetic: Samples of the synthetic dataset, each with a "labels" map.
        predictions: Test images, each with a "truth" map and one map per segmenter.
    """

    grounded: dict[str, list[Picture]] = field(default_factory=dict)
    synthetic: list[Picture] = field(default_factory=list)
    predictions: list[Picture] = field(default_factory=list)


def render(report: dict, gallery: Gallery, vocabulary: Vocabulary) -> str:
    """Return the HTML page of a report.

    Args:
        report: The content of ``report.json``.
        gallery: Its pictures.
        vocabulary: Gives colours, names and the unseen classes.
    """
    return load_template("page.html").render(
        style=load_text("page.css"),
        report=report,
        numbers=numbers,
        layers=lambda picture: _layers(picture, vocabulary),
        paint=lambda labels: colorize(labels, vocabulary.palette),
        words=lambda labels: _words(labels, vocabulary),
        legend=_legend(gallery, vocabulary),
        gallery=gallery,
        bars=_class_bars(report),
        color=lambda rgb: "#{:02x}{:02x}{:02x}".format(*rgb),
    )


def load_template(name: str) -> jinja2.Template:
    """Return a template of this package; it escapes what is filled in."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals.update(data_uri=data_uri, percent=numbers.percent)
    return environment.from_string(load_text(name))


def load_text(name: str) -> Markup:
    """Return a file of this package, to be filled in as it is."""
    return Markup((files("ovseg") / "report" / name).read_text(encoding="utf-8"))


def write(path: str | Path, report: dict, gallery: Gallery, vocabulary: Vocabulary) -> Path:
    """Write the page of a report and return its path."""
    path = Path(path)
    path.write_text(render(report, gallery, vocabulary), encoding="utf-8")
    return path


def _present(labels: np.ndarray) -> list[int]:
    """Class ids in a label map, without background and ignore."""
    return [int(i) for i in np.unique(labels) if 0 < i < IGNORE]


def _words(labels: np.ndarray, vocabulary: Vocabulary) -> str:
    """What a label map holds, in words, for readers who do not see it."""
    return ", ".join(vocabulary[i].name for i in _present(labels)) or "background only"


def _layers(picture: Picture, vocabulary: Vocabulary) -> list[dict]:
    """One toggled layer per class of a picture's prediction."""
    labels = picture.maps["prediction"]
    return [
        {
            "name": vocabulary[i].name,
            "color": vocabulary[i].color,
            "uri": data_uri(overlay(labels == i, vocabulary[i].color)),
        }
        for i in _present(labels)
    ]


def _legend(gallery: Gallery, vocabulary: Vocabulary) -> list[tuple[str, tuple[int, int, int]]]:
    """Names and colours of the classes that occur in painted label maps."""
    pictures: Sequence[Picture] = [*gallery.synthetic, *gallery.predictions]
    ids = {i for picture in pictures for labels in picture.maps.values() for i in _present(labels)}
    return [(vocabulary[i].name, vocabulary[i].color) for i in sorted(ids)]


def _class_bars(report: dict) -> Markup:
    """Bars of both segmenters: seen classes first, then unseen ones."""
    order = [*report["seen"], *report["unseen"]]
    groups = {
        name: {key: scores["per_class"].get(key) for key in order}
        for name, scores in report["segmentation"].items()
    }
    return bars(groups, marked=report["unseen"])
