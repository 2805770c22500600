"""The files of a test: results, a segmenter's areas of every image, and its table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from ovseg.protocol import Protocol, Published

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


def table(protocol: Protocol, results: Mapping[str, Mapping], method: str, training: str) -> str:
    """Return Markdown: per stream, others' comparable rows, then ours; then the other rows.

    Args:
        protocol: What was scored.
        results: Per stream, `seen`, `unseen` and `harmonic`.
        method: Our row's name.
        training: What it was trained with.
    """
    beside = [_row(row.method, row.training, vars(row)) for row in _rows(protocol, fits=True)]
    parts = [f"# {protocol.title} ({protocol.name})\n\nmIoU in percent.\n"]
    for name, scores in results.items():
        rows = [*beside, _row(f"**{method}**", training, scores)]
        parts.append(f"\n## {name}\n{HEAD}{''.join(rows)}")
    sources = dict.fromkeys(row.source for row in protocol.published)
    if sources:
        parts.append(f"\nOthers' figures: {'; '.join(sources)}.\n")
    others = _rows(protocol, fits=False)
    if others:
        rows = (_row(row.method, row.incomparable, vars(row)) for row in others)
        head = HEAD.replace("training data", "why not")
        parts.append(f"\n## Not comparable\n{head}{''.join(rows)}")
    return "".join(parts)


def _rows(protocol: Protocol, fits: bool) -> list[Published]:
    return [row for row in protocol.published if (row.incomparable is None) == fits]


def _row(method: str, words: str, scores: Mapping) -> str:
    values = (float(scores[key]) for key in ("seen", "unseen", "harmonic"))
    cells = " | ".join("–" if value != value else f"{value:.1f}" for value in values)
    return f"| {method} | {words} | {cells} |\n"
