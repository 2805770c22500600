"""The table of a grounder's test: others' rows, its own, and its controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import yaml

from ovseg.vocabulary import Vocabulary

CONTROLS = ("synonyms", "random_names", "swapped", "foreground", "ceiling")
"""Rows that a test's own row must be read beside."""

AVERAGES = {"miou": "mean over classes", "miou_images": "mean over images"}

Row = tuple[str, str, list[float | None]]
"""Method, whose it is, and a value per column."""


@dataclass(frozen=True, kw_only=True)
class PublishedGrounding:
    """Another's row; mIoU in percent.

    Attributes:
        method: Its name.
        vocabulary: Classes.
        split: Split; None of the mean over several.
        columns: ``{test stream: mIoU}``.
        source: Where the figures stand.
    """

    method: str
    vocabulary: str
    split: str | None = None
    columns: Mapping[str, float]
    source: str

    @property
    def label(self) -> str:
        """Method and split."""
        return f"{self.method}, {f'split {self.split}' if self.split else 'mean of splits'}"


def bound(results: Mapping[str, Mapping]) -> str:
    """Return the remark on a grounder that has learnt masks of unseen classes; "" of any other.

    Args:
        results: Per stream, with the names of these classes under ``unseen_masks``.
    """
    names = dict.fromkeys(n for scores in results.values() for n in scores.get("unseen_masks", ()))
    learnt = ", ".join(names)
    return f"Trained with masks of {learnt}: a bound, no zero-shot result." if names else ""


def published(vocabulary: Vocabulary, results: Mapping[str, Mapping]) -> list[PublishedGrounding]:
    """Return others' rows of these classes: of this split, and means over splits.

    Beside a grounder that has learnt masks of unseen classes nobody stands.
    """
    if bound(results):
        return []
    path = files("ovseg") / "protocols" / "grounding" / "published.yaml"
    rows = [PublishedGrounding(**row) for row in yaml.safe_load(path.read_text(encoding="utf-8"))]
    splits = (None, vocabulary.split)
    return [row for row in rows if row.vocabulary == vocabulary.name and row.split in splits]


def rows(
    results: Mapping[str, Mapping], method: str, key: str, others: Sequence[PublishedGrounding]
) -> Iterator[Row]:
    """Yield the rows of a table: others', ours, the controls that were made.

    Args:
        results: Per stream (a column), what `GroundingScores.compute` returns.
        method: Our row's name.
        key: One of `AVERAGES`.
        others: Rows to begin with.
    """
    for row in others:
        yield row.label, "published", [row.columns.get(column) for column in results]
    yield method, "this test", [scores[key] for scores in results.values()]
    for control in CONTROLS:
        values = [scores.get(control, {}).get(key) for scores in results.values()]
        if any(control in scores for scores in results.values()):
            yield control, "control", values


def facts(results: Mapping[str, Mapping]) -> Iterator[Row]:
    """Yield what is known of each column beside IoU."""
    for title, key, scale in (
        ("right object, %", "choice", 1),
        ("presence, AUROC", "presence", 1),
        ("left out, %", "excluded", 100),
    ):
        values = [scores.get(key) for scores in results.values()]
        yield title, "this test", [None if v is None else scale * v for v in values]


def table(results: Mapping[str, Mapping], method: str, vocabulary: Vocabulary) -> str:
    """Return Markdown: a table per way of averaging, and one of what else is known.

    Args:
        results: Per stream (a column), what `GroundingScores.compute` returns.
        method: Our row's name.
        vocabulary: Classes and split.
    """
    others, remark = published(vocabulary, results), bound(results)
    title = f"Grounding, {vocabulary.name}, split {vocabulary.split}"
    parts = [f"# {title}\n\nmIoU in percent.{remark and f' {remark}'}\n"]
    for key, title in AVERAGES.items():
        body = rows(results, f"**{method}**", key, others)
        parts.append(f"\n## {title.capitalize()}\n{_markdown(results, body)}")
    parts.append(f"\n## Beside it\n{_markdown(results, facts(results))}")
    counts = " | ".join(str(scores["images"]) for scores in results.values())
    parts.append(f"| images scored | this test | {counts} |\n")
    if others:
        sources = "; ".join(dict.fromkeys(row.source for row in others))
        parts.append(
            f"\nPublished figures: {sources}. Their test images are others, and how they are "
            "averaged is not said.\n"
        )
    return "".join(parts)


def _markdown(columns: Mapping, body: Iterator[Row]) -> str:
    head = ["method", "", *(name.replace("_", " ") for name in columns)]
    lines = [head, ["---"] * len(head)]
    lines += [[name, whose, *map(_cell, values)] for name, whose, values in body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.1f}"
