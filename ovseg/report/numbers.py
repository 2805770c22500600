"""The names and order of what a report holds, shared by page and terminal."""

from __future__ import annotations

from collections.abc import Iterator

METHODS = {
    "probe": "our grounding module, which labels stage 3",
    "fusion": "the grounding module of Li et al., trained on the same masks",
    "attention": "cross-attention maps of the backbone, without training",
    "synonyms": "control: our module, each name replaced by a synonym it was never trained with",
    "random_names": "control: our module, each name replaced by a fixed random vector",
    "swapped": "control: our module's mask of the other object",
    "foreground": "control: the union of all objects given to every name",
    "ceiling": "the true masks through the feature grid and back",
}
"""Rows of the grounding table."""

TRAINED = {"probe": "2_grounding", "fusion": "2_fusion", "attention": "2_attention"}
"""Rows that are grounders of their own, and the folder of their results; the rest are controls."""

COLUMNS = {
    "one_seen": ("one_object", "seen"),
    "one_unseen": ("one_object", "unseen"),
    "two_seen": ("two_objects", "seen"),
    "two_mixed": ("two_objects", "mixed"),
    "two_unseen": ("two_objects", "unseen"),
}
"""Test streams of the grounding module and where their numbers stand in the report."""

CHOICES = ("two_seen", "two_unseen")
"""Test streams in which there is another object to choose."""

TRAINED_ON = {
    "synthetic": "generated images, labelled by the grounding module",
    "supervised": "as many drawn scenes with their true masks, all classes",
}
"""Rows of the segmentation table."""

SCORES = ("seen", "unseen", "harmonic", "background")
"""Columns of the segmentation table."""


def percent(value: float | None) -> str:
    """Format a percentage with one decimal; a dash where there is no number.

    >>> percent(71.26), percent(None), percent(float("nan"))
    ('71.3', '–', '–')
    """
    return "–" if value is None or value != value else f"{value:.1f}"


def grounding_rows(report: dict, suffix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield each method with its formatted value per column.

    Args:
        report: A report.
        suffix: "" for the mean over classes, "_images" for the mean over images.
    """
    for method in METHODS:
        values = report["grounding"].get(method, {})
        cells = [values.get(group, {}).get(key + suffix) for group, key in COLUMNS.values()]
        yield method, [percent(value) for value in cells]


def choice_rows(report: dict) -> Iterator[tuple[str, list[str]]]:
    """Yield each method that chooses with its formatted share per two-object column."""
    for method in METHODS:
        if method in report["choice"]:
            values = report["choice"][method]
            yield method, [percent(values.get(column)) for column in CHOICES]


def presence_rows(report: dict) -> Iterator[tuple[str, list[str]]]:
    """Yield each trained method with how well it tells names in a picture from others."""
    for method, values in report["presence"].items():
        yield method, [percent(values.get(column)) for column in COLUMNS]


def segmentation_rows(report: dict) -> Iterator[tuple[str, list[str]]]:
    """Yield each training set with its formatted scores."""
    for name in TRAINED_ON:
        if name in report["segmentation"]:
            scores = report["segmentation"][name]
            yield name, [percent(scores.get(score)) for score in SCORES]
