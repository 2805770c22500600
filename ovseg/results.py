"""The files of a test: results, a segmenter's areas of every image, and its table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from ovseg.protocol import Protocol, Published, elsewhere

RESULTS = "results.json"
IMAGES = "results_images.npz"
TABLE = "results.md"
HEAD = "| method | training data | S | U | H |\n|---|---|---|---|---|\n"


def write_file(path: Path, content: bytes) -> None:
    """Write a file and the folders above it, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def pack_images(
    streams: Mapping[str, tuple[np.ndarray, np.ndarray]], seen: Sequence[int], unseen: Sequence[int]
) -> bytes:
    """Return an npz of the areas of single images.

    Args:
        streams: Per stream, what `SegmentationIoU.images` returns.
        seen: Ids of the classes in the mean of the seen ones.
        unseen: Ids of the unseen classes.
    """
    arrays = {"seen": np.asarray(seen), "unseen": np.asarray(unseen)}
    for name, (indices, areas) in streams.items():
        arrays |= {f"{name}/indices": indices, f"{name}/areas": areas}
    content = BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def table(
    protocol: Protocol, results: Mapping[str, Mapping], method: str, training: str, bound: bool
) -> str:
    """Return Markdown: per stream, others' comparable rows, then ours; then the other rows.

    Args:
        protocol: What was scored.
        results: Per stream, `seen`, `unseen`, `harmonic` and the number of `images`.
        method: Our row's name.
        training: What it was trained with.
        bound: Whether masks of unseen classes were: nobody's row is comparable then.
    """
    parts = [f"# {protocol.title} ({protocol.name})\n\nmIoU in percent.\n"]
    apart: dict[Published, str] = {}
    for name, scores in results.items():
        beside, reason = comparable(protocol, scores["images"], bound)
        apart |= dict.fromkeys((row for row in _fitting(protocol) if row not in beside), reason)
        rows = [_row(row.method, row.training, vars(row)) for row in beside]
        rows.append(_row(f"**{method}**", training, scores))
        parts.append(f"\n## {name}, {scores['images']:,} images\n{HEAD}{''.join(rows)}")
    others = {row: row.incomparable for row in protocol.published if row.incomparable}
    others = {**apart, **others, **{row: row.incomparable for row in elsewhere(protocol)}}
    if sources := dict.fromkeys(row.source for row in (*_fitting(protocol), *others)):
        parts.append(f"\nOthers' figures: {'; '.join(sources)}.\n")
    if others:
        rows = [_row(row.method, reason, vars(row)) for row, reason in others.items()]
        head = HEAD.replace("training data", "why not")
        parts.append(f"\n## Not comparable\n{head}{''.join(rows)}")
    return "".join(parts)


def comparable(protocol: Protocol, images: int, bound: bool) -> tuple[list[Published], str]:
    """Return others' rows that may stand beside a test, and why the others may not.

    Args:
        protocol: What was scored.
        images: How many images were.
        bound: Whether training used masks of unseen classes.
    """
    reason = ""
    if bound:
        reason = "this test's training used masks of unseen classes"
    elif protocol.test_images not in (None, images):
        reason = f"of {protocol.test_images:,} test images, this test is of {images:,}"
    return ([] if reason else _fitting(protocol)), reason


def _fitting(protocol: Protocol) -> list[Published]:
    return [row for row in protocol.published if row.incomparable is None]


def _row(method: str, words: str, scores: Mapping) -> str:
    values = (float(scores[key]) for key in ("seen", "unseen", "harmonic"))
    cells = " | ".join("–" if value != value else f"{value:.1f}" for value in values)
    return f"| {method} | {words} | {cells} |\n"
