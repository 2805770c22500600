"""``ovseg compare``: is the difference of two tests of segmenters more than the luck of images?

A paired bootstrap: images are drawn with replacement, the same ones for both, the areas of what was
drawn are summed, and the scores of the sums are subtracted. The interval is what the middle 95 % of
the differences span.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ovseg.errors import VerbParser
from ovseg.report.numbers import percent
from ovseg.results import IMAGES, RESULTS
from ovseg.steps import write_text

SCORES = ("seen", "unseen", "harmonic")
MIDDLE = (2.5, 97.5)
CIRCUMSTANCES = ("inference", "unseen_masks")
CHUNK = 256
"""Resamples that are drawn at once."""


@dataclass(frozen=True)
class Stream:
    """What one test stream gave.

    Attributes:
        facts: The protocol.
        scores: As results.json has them.
        indices: ``(I,)`` numbers of the images.
        areas: ``(I, 3, N)`` intersection, union and truth of every image.
        seen: Ids of the classes in the mean of the seen ones.
        unseen: Ids of the unseen classes.
        circumstances: What else may differ and is no part of the protocol: how images were seen,
            and whether masks of unseen classes were allowed.
    """

    facts: dict
    scores: dict
    indices: np.ndarray
    areas: np.ndarray
    seen: np.ndarray
    unseen: np.ndarray
    circumstances: dict = field(default_factory=dict)


def main(argv: Sequence[str]) -> None:
    """Compare two tests.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is none of a segmenter's test, or the tests are of different things.
    """
    args = _parse(argv)
    one, two = read(args.one), read(args.two)
    if one.keys() != two.keys():
        raise ValueError(
            f"the tests have different streams, {', '.join(one)} and {', '.join(two)}: compare "
            "tests of the same data"
        )
    for name in one:
        check(name, one[name], two[name])
    result = {name: compare(one[name], two[name], args.resamples, args.seed) for name in one}
    _print(result, args)
    for line in dict.fromkeys(line for name in one for line in unlike(one[name], two[name])):
        print(line)
    if args.json:
        write_text(args.json, json.dumps(result, indent=2) + "\n")


def read(source: Path) -> dict[str, Stream]:
    """Read the streams of a results.json, or of the folder that holds one.

    Raises:
        FileNotFoundError: If it or the file of single images is missing.
        ValueError: If they are damaged, or not of one test of a segmenter.
    """
    path = source / RESULTS if source.is_dir() else source
    images = path.with_name(IMAGES)
    for file in (path, images):
        if not file.is_file():
            raise FileNotFoundError(f"no {file}: `ovseg test` of a segmenter writes it")
    text, content = path.read_bytes(), images.read_bytes()
    try:
        results = json.loads(text)
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            groups = {key: arrays[key].astype(np.int64) for key in ("seen", "unseen")}
            streams = {
                name: Stream(
                    facts=scores["protocol"],
                    scores={key: scores[key] for key in SCORES},
                    indices=arrays[f"{name}/indices"],
                    areas=arrays[f"{name}/areas"].astype(np.int64),
                    circumstances={key: scores.get(key) for key in CIRCUMSTANCES},
                    **groups,
                )
                for name, scores in results.items()
            }
        for stream in streams.values():
            _check_shapes(stream)
    except Exception as error:  # of damaged bytes numpy and zipfile raise a dozen kinds
        raise ValueError(
            f"{path} and {IMAGES} beside it are not those of a test of a segmenter: "
            f"{type(error).__name__}: {error}"
        ) from None
    for name, stream in streams.items():
        _check_whole(path, name, stream)
    return streams


def _check_shapes(stream: Stream) -> None:
    """Refuse arrays that cannot be the areas of single images."""
    if stream.areas.ndim != 3 or stream.areas.shape[:2] != (*stream.indices.shape, 3):
        raise ValueError(
            f"areas of shape {stream.areas.shape} of images of shape {stream.indices.shape}"
        )
    ids = np.concatenate([stream.seen, stream.unseen])
    if ((ids < 0) | (ids >= stream.areas.shape[2])).any():
        raise ValueError(f"classes {ids.tolist()} of {stream.areas.shape[2]}")


def _check_whole(path: Path, name: str, stream: Stream) -> None:
    """Refuse areas that do not give the scores that stand beside them."""
    scores = score(stream.areas.sum(axis=0)[None], stream.seen, stream.unseen)[0]
    written = [stream.scores[key] for key in SCORES]
    written = np.array([np.nan if value is None else value for value in written], float)
    if not np.allclose(scores, written, rtol=0, atol=1e-3, equal_nan=True):
        raise ValueError(
            f"{path} and {IMAGES} beside it are of two different tests (stream {name!r}): test "
            "again"
        )


def check(name: str, one: Stream, two: Stream) -> None:
    """Refuse streams that were not scored by the same protocol on the same images.

    Raises:
        ValueError: If they were not.
    """
    for key in {**one.facts, **two.facts}:
        first, second = one.facts.get(key), two.facts.get(key)
        if first != second and key != "title":
            raise ValueError(
                f"the tests have different protocols: {key} is {first!r} and {second!r} in stream "
                f"{name!r}"
            )
    if not np.array_equal(one.indices, two.indices):
        common = len(np.intersect1d(one.indices, two.indices))
        raise ValueError(
            f"the tests have different images in stream {name!r}: {len(one.indices)} and "
            f"{len(two.indices)}, {common} of them in both"
        )
    if not len(one.indices):
        raise ValueError(f"the tests have no image in stream {name!r}: nothing to compare")
    differ = (one.areas[:, 2] != two.areas[:, 2]).any(axis=1)
    if differ.any():
        raise ValueError(
            f"the tests have different images in stream {name!r}: the truth of number "
            f"{one.indices[differ][0]} is not the same"
        )


def unlike(one: Stream, two: Stream) -> list[str]:
    """Say what differs beside what was trained, a line each."""
    return [
        f"Mind that {key} differs: A {one.circumstances.get(key)}, B {two.circumstances.get(key)}."
        for key in CIRCUMSTANCES
        if one.circumstances.get(key) != two.circumstances.get(key)
    ]


def compare(one: Stream, two: Stream, resamples: int = 10_000, seed: int = 0) -> dict:
    """Return both scores, their difference (two minus one) and its interval, in percent.

    Args:
        one: A test.
        two: Another on the same images.
        resamples: Draws of as many images as there are, with replacement.
        seed: Seed of the draws.
    """
    both = np.stack([one.areas[:, :2], two.areas[:, :2]], axis=1)
    first, second = score(both.sum(axis=0), one.seen, one.unseen)
    drawn = bootstrap(both, one.seen, one.unseen, resamples, seed)
    result: dict = {"images": len(one.indices), "resamples": resamples, "seed": seed}
    for place, key in enumerate(SCORES):
        values = drawn[~np.isnan(drawn[:, place]), place]
        low, high = np.percentile(values, MIDDLE) if len(values) else (np.nan, np.nan)
        facts = (first[place], second[place], second[place] - first[place], low, high)
        names = ("one", "two", "difference", "low", "high")
        result[key] = {
            n: None if np.isnan(v) else round(float(v), 4)
            for n, v in zip(names, facts, strict=True)
        }
    return result


def bootstrap(
    areas: np.ndarray, seen: np.ndarray, unseen: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    """Return the differences (two minus one) of resampled images.

    Args:
        areas: ``(I, 2, 2, N)``: per image and test, intersection and union.
        seen: Ids of the seen classes.
        unseen: Ids of the unseen classes.
        resamples: R, how many draws.
        seed: Seed of the draws.

    Returns:
        ``(R, 3)`` float64: `SCORES` in percent, NaN where no class of a group was drawn.
    """
    random = np.random.default_rng(seed)
    images = len(areas)
    columns = areas.reshape(images, -1).astype(np.float64)  # sums of whole numbers, exact
    parts = []
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = random.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)
        sums = (times.astype(np.float64) @ columns).reshape(rows, *areas.shape[1:])
        parts.append(score(sums[:, 1], seen, unseen) - score(sums[:, 0], seen, unseen))
    return np.concatenate(parts)


def score(areas: np.ndarray, seen: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Return `SCORES` in percent, ``(R, 3)``, from intersections and unions ``(R, 2 or more, N)``.

    Classes of an empty union count in no mean.
    """
    with np.errstate(invalid="ignore"):
        iou = 100 * areas[:, 0] / areas[:, 1]
        there = ~np.isnan(iou)
        filled = np.where(there, iou, 0)
        s, u = (filled[:, ids].sum(1) / there[:, ids].sum(1) for ids in (seen, unseen))
        harmonic = np.where(s + u == 0, 0, 2 * s * u / (s + u))
    return np.stack([s, u, harmonic], axis=1)


def _print(result: dict, args: argparse.Namespace) -> None:
    for name, facts in result.items():
        title = f"{name}: {facts['images']} images, {facts['resamples']} resamples"
        table = Table("mIoU", title=title, title_justify="left")
        for head in ("A", "B", "B - A", "95 % interval"):
            table.add_column(head, justify="right")
        for key in SCORES:
            row = facts[key]
            cells = [percent(row[k]) for k in ("one", "two", "difference")]
            table.add_row(key, *cells, f"{percent(row['low'])} to {percent(row['high'])}")
        Console(markup=False, emoji=False).print(table)
    print(f"A is {args.one}, B is {args.two}. An interval without 0: more than the luck of images.")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = VerbParser(
        prog="ovseg compare",
        description="Scores of two tests on the same images, their difference, and the interval "
        "that a paired bootstrap over images gives it.",
    )
    what = "a results.json of `ovseg test`, or its folder"
    parser.add_argument("one", type=Path, metavar="RESULTS_A", help=what)
    parser.add_argument("two", type=Path, metavar="RESULTS_B", help=what)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args(argv)
    if args.resamples < 1 or args.seed < 0:
        raise ValueError(
            f"--resamples must be >= 1 and --seed >= 0, got {args.resamples} and {args.seed}"
        )
    return args
