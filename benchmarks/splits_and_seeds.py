"""The quickstart on three splits with three seeds each: mean, spread, and what it should reach.

    python benchmarks/splits_and_seeds.py --out runs/splits_and_seeds

Every run is `ovseg quickstart` in a folder of its own; a killed one goes on where it was. The table
holds the runs of one scale that are done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from ovseg.quickstart import run_settings
from ovseg.report.numbers import COLUMNS, METHODS, SCORES
from ovseg.steps import write_text

SPLITS, SEEDS = ("1", "2", "3"), (0, 1, 2)
Rows = dict[str, list[float]]


class Target(NamedTuple):
    """What the mean over all runs should reach.

    Attributes:
        what: For people.
        bar: The least value, or the largest if `at_most`.
        value: Computes it from the means.
        at_most: Whether the bar is an upper one.
    """

    what: str
    bar: float
    value: Callable[[dict[str, float]], float]
    at_most: bool = False


TARGETS = [
    Target(
        "one object: unseen / seen", 0.95, lambda m: m["probe one_unseen"] / m["probe one_seen"]
    ),
    Target(
        "two objects: unseen / seen", 0.9, lambda m: m["probe two_unseen"] / m["probe two_seen"]
    ),
    Target(
        "two unseen above foreground",
        25,
        lambda m: m["probe two_unseen"] - m["foreground two_unseen"],
    ),
    Target(
        "two unseen above attention",
        10,
        lambda m: m["probe two_unseen"] - m["attention two_unseen"],
    ),
    Target("two seen: own - swapped", 40, lambda m: m["probe two_seen"] - m["swapped two_seen"]),
    Target(
        "two unseen: own - swapped", 35, lambda m: m["probe two_unseen"] - m["swapped two_unseen"]
    ),
    Target("right object, two unseen", 90, lambda m: m["choice two_unseen"]),
    Target(
        "presence, least of the columns",
        95,
        lambda m: min(m[f"presence {column}"] for column in COLUMNS),
    ),
    Target(
        "random names above foreground, two unseen",
        5,
        lambda m: m["random_names two_unseen"] - m["foreground two_unseen"],
        at_most=True,
    ),
    Target(
        "lost with synonyms, most of the columns",
        5,
        lambda m: max(m[f"probe {column}"] - m[f"synonyms {column}"] for column in COLUMNS),
        at_most=True,
    ),
    Target(
        "labels of stage 3: unseen / seen", 0.9, lambda m: m["labels unseen"] / m["labels seen"]
    ),
    Target(
        "segmenter: harmonic / supervised",
        0.85,
        lambda m: m["synthetic harmonic"] / m["supervised harmonic"],
    ),
]


def numbers(report: dict) -> dict[str, float]:
    """Flatten a quickstart's report: ``{"probe two_unseen": 81.2, ...}``."""
    found = {}
    for method in METHODS:
        for column, (group, key) in COLUMNS.items():
            found[f"{method} {column}"] = report["grounding"][method][group][key]
    for column, value in report["choice"]["probe"].items():
        found[f"choice {column}"] = value
    for column, value in report["presence"]["probe"].items():
        found[f"presence {column}"] = value
    for kind, value in report["labels_of_stage_3"].items():
        found[f"labels {kind}"] = value
    for name, scores in report["segmentation"].items():
        for score in SCORES:
            found[f"{name} {score}"] = scores[score]
    return {name: value for name, value in found.items() if value is not None}


def collect(out: Path, scale: float = 1.0) -> Rows:
    """Return the numbers of the runs of a scale that are done, by name."""
    rows: Rows = {}
    for path in sorted(out.glob("split-*/report.json")):
        if run_settings(path.parent)["scale"] != scale:
            continue
        for name, value in numbers(json.loads(path.read_text(encoding="utf-8"))).items():
            rows.setdefault(name, []).append(value)
    return rows


def summary(rows: Rows) -> dict:
    """Return mean, standard deviation, least and largest of every number, and the verdicts."""
    means = {name: mean(values) for name, values in rows.items()}
    verdicts = []
    for target in TARGETS:
        value = target.value(means)
        held = value <= target.bar if target.at_most else value >= target.bar
        verdicts.append({"what": target.what, "bar": target.bar, "value": value, "held": held})
    spread = {
        name: {
            "mean": means[name],
            "std": stdev(values) if len(values) > 1 else 0.0,
            "min": min(values),
            "max": max(values),
            "runs": len(values),
        }
        for name, values in rows.items()
    }
    return {"numbers": spread, "targets": verdicts}


def show(result: dict, console: Console) -> None:
    """Print mean and spread, method by method, and the verdicts."""
    table = Table(title="Mean ± standard deviation (least to largest)", title_justify="left")
    for column in ("", "mean", "±", "least", "largest", "runs"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in result["numbers"].items():
        values = (f"{row[key]:.1f}" for key in ("mean", "std", "min", "max"))
        table.add_row(name, *values, str(row["runs"]))
    console.print(table)
    table = Table("target", "bar", "reached", "", title="Targets", title_justify="left")
    for row in result["targets"]:
        verdict = "held" if row["held"] else "MISSED"
        table.add_row(row["what"], f"{row['bar']:g}", f"{row['value']:.2f}", verdict)
    console.print(table)


def main() -> None:
    """Run what is missing, then print and store the summary."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/splits_and_seeds"))
    parser.add_argument("--scale", type=float, default=1.0, help="as of `ovseg quickstart`")
    parser.add_argument("--show", action="store_true", help="run nothing, show what is done")
    args = parser.parse_args()
    for seed, split in [] if args.show else product(SEEDS, SPLITS):
        folder = args.out / f"split-{split}_seed-{seed}"
        command = [sys.executable, "-m", "ovseg", "quickstart", "--out", str(folder)]
        command += ["--split", split, "--seed", str(seed), "--scale", str(args.scale)]
        if code := subprocess.run(command).returncode:
            sys.exit(code)  # it has said why
    rows = collect(args.out, args.scale)
    if not rows:
        parser.error(f"no run of scale {args.scale:g} is done in {args.out}: leave --show out")
    result = summary(rows)
    write_text(args.out / "splits_and_seeds.json", json.dumps(result, indent=1))
    show(result, Console(width=110))


if __name__ == "__main__":
    main()
