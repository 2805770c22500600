"""What a segmenter takes for what: a confusion matrix as a picture and as a table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import BytesIO, StringIO

import numpy as np

from ovseg.vocabulary import Vocabulary

MOST = 40
"""Most classes that a picture shows."""

UNSEEN = "#b0480f"


def shown_classes(matrix: np.ndarray, vocabulary: Vocabulary, most: int = MOST) -> list[int]:
    """Return the ids of the classes to show: background if it occurs, seen ones, unseen ones.

    Of more than ``most`` classes, those of the largest confusions, as shares of a class's pixels.

    Args:
        matrix: ``(N, N)`` pixels; rows are the truth, columns the prediction.
        vocabulary: Classes and split.
        most: Limit.
    """
    background = [0] if matrix[0].any() or matrix[:, 0].any() else []
    ids = [*background, *vocabulary.seen, *vocabulary.unseen]
    if len(ids) <= most:
        return ids
    share = np.nan_to_num(shares(matrix))
    np.fill_diagonal(share, 0)
    chosen: set[int] = set()
    for cell in np.argsort(-share, axis=None, kind="stable"):
        pair = {int(i) for i in divmod(int(cell), len(share))}
        if len(chosen | pair) > most:
            break
        chosen |= pair
    return [i for i in ids if i in chosen]


def shares(matrix: np.ndarray) -> np.ndarray:
    """Return percent of each row's sum, ``(N, N)``; NaN in rows of classes that do not occur."""
    with np.errstate(invalid="ignore"):
        return 100 * matrix / matrix.sum(axis=1, keepdims=True)


def draw(matrix: np.ndarray, vocabulary: Vocabulary, title: str) -> bytes:
    """Return a heat map as a PNG: what share of a class's pixels was taken for which class.

    Args:
        matrix: ``(N, N)`` pixels; rows are the truth, columns the prediction.
        vocabulary: Gives names and order: background, seen classes, a line, unseen ones.
        title: Stands above.
    """
    from matplotlib.figure import Figure

    ids = shown_classes(matrix, vocabulary)
    cells = shares(matrix)[np.ix_(ids, ids)]
    side = 2.2 + 0.3 * len(ids)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot(facecolor="#dddcd6")
    image = axes.imshow(cells, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(ids)), [vocabulary.names[i] for i in ids], rotation=90)
    axes.set_yticks(range(len(ids)), [vocabulary.names[i] for i in ids])
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        for class_id, label in zip(ids, labels, strict=True):
            label.set_color(UNSEEN if class_id in vocabulary.unseen else "black")
    _number(axes, cells)
    first = next((place for place, i in enumerate(ids) if i in vocabulary.unseen), None)
    if first is not None:
        axes.axhline(first - 0.5, color=UNSEEN, linewidth=1.2)
        axes.axvline(first - 0.5, color=UNSEEN, linewidth=1.2)
    total = vocabulary.num_classes - (0 not in ids)
    part = "" if len(ids) == total else f" (the {len(ids)} most confused of {total})"
    truth = "truth (grey: does not occur)" if np.isnan(cells).any() else "truth"
    axes.set(xlabel="prediction", ylabel=truth, title=f"{title}{part}")
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the truth's pixels")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()


def _number(axes, cells: np.ndarray) -> None:
    """Write into every cell of at least half a percent what it is."""
    for row, column in np.argwhere(cells >= 0.5):
        value = cells[row, column]
        color = "white" if value > 55 else "black"
        place = {"ha": "center", "va": "center", "fontsize": 7, "color": color}
        axes.text(column, row, f"{value:.0f}", **place)


def as_csv(matrix: np.ndarray, names: Sequence[str]) -> str:
    """Return the pixels as CSV: a row per truth, a column per prediction."""
    content = StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["truth", *names])
    writer.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    return content.getvalue()
