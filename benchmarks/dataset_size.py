"""How much a segmenter gains from more synthetic images: stage 4 on 250 to 8,000 of them.

    python benchmarks/dataset_size.py --run runs/quickstart --out runs/dataset_size

The images are labelled by the grounding module of a finished quickstart, and every segmenter takes
as many training steps. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from ovseg.report.numbers import SCORES, percent
from ovseg.steps import Step, run_steps, write_text

SIZES = (250, 500, 1000, 2000, 4000, 8000)
MARGIN = 1.15
"""Images generated per image used: in some the grounding module finds no mask for a name."""


def plan(run: Path, out: Path, sizes: tuple[int, ...]) -> list[Step]:
    """Write the configs, and return the steps that make the images, train and test."""
    third = yaml.safe_load((run / "configs" / "3_synthetic.yaml").read_text(encoding="utf-8"))
    third["trainer"]["callbacks"][0]["init_args"]["output"] = str(out / "synthetic")
    stream = third["data"]["init_args"]["predict"]["synthetic"]["init_args"]
    stream["size"] = round(max(sizes) * MARGIN)
    path = _write(out / "configs" / "synthetic.yaml", third)
    arguments = ("predict", "--config", str(path))
    steps = [Step("synthetic", "the images", "synthetic", arguments, (path,))]
    fourth = (run / "configs" / "4_segmenter.yaml").read_text(encoding="utf-8")
    for size in sizes:
        name = f"images_{size}"
        stage = yaml.safe_load(fourth)
        stage["trainer"]["default_root_dir"] = str(out / name)
        for callback in stage["trainer"]["callbacks"]:
            if "dirpath" in callback.get("init_args", {}):
                callback["init_args"]["dirpath"] = str(out / name / "checkpoints")
        train = stage["data"]["init_args"]["train"]["init_args"]
        train |= {"path": str(out / "synthetic"), "limit": size}
        path = _write(out / "configs" / f"{name}.yaml", stage)
        arguments = ("fit", "--config", str(path), "--then_test", "true")
        title = f"a segmenter from {size} images"
        steps.append(Step(name, title, name, arguments, (path,), after="synthetic"))
    return steps


def collect(out: Path, sizes: Iterable[int]) -> dict[int, dict]:
    """Return the scores of the sizes that were planned; others there may be of other images."""
    found = {}
    for size in sorted(sizes):
        path = out / f"images_{size}" / "results.json"
        scores = json.loads(path.read_text(encoding="utf-8"))["drawn"]
        found[size] = {score: scores[score] for score in SCORES}
    return found


def show(table: dict[int, dict], supervised: dict, console: Console) -> None:
    """Print the scores."""
    printed = Table("images", *SCORES, title="Segmenter, mIoU", title_justify="left")
    for size, scores in table.items():
        printed.add_row(f"{size:,}", *(percent(scores[score]) for score in SCORES))
    printed.add_row("supervised", *(percent(supervised[score]) for score in SCORES))
    console.print(printed)


def plot(table: dict[int, dict], supervised: dict, path: Path) -> None:
    """Draw the scores against the number of images, and the supervised bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="synthetic images", ylabel="mIoU", xscale="log")
    for score, color in (("seen", "#4477aa"), ("unseen", "#ee6677"), ("harmonic", "#222222")):
        axes.plot([*table], [row[score] for row in table.values()], "o-", color=color, label=score)
    bound = supervised["harmonic"]
    axes.axhline(bound, color="#999999", linestyle="--", label="harmonic, true masks")
    axes.set_xticks([*table], [f"{size:,}" for size in table])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)


def _write(path: Path, content: dict) -> Path:
    write_text(path, yaml.safe_dump(content, sort_keys=False))
    return path


def main() -> None:
    """Run what is missing, then print, plot and store the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--out", type=Path, default=Path("runs/dataset_size"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    args = parser.parse_args()
    run, out = args.run.absolute(), args.out.absolute()
    bound = run / "4_supervised" / "results.json"
    if not bound.is_file():
        parser.error(f"no finished run in {run}: run `ovseg quickstart --out {run}` first")
    supervised = json.loads(bound.read_text(encoding="utf-8"))["drawn"]
    run_steps(out, plan(run, out, tuple(args.sizes)), {"TOKENIZERS_PARALLELISM": "false"})
    table = collect(out, args.sizes)
    write_text(out / "dataset_size.json", json.dumps(table, indent=1))
    plot(table, supervised, out / "dataset_size.png")
    show(table, supervised, Console())


if __name__ == "__main__":
    main()
