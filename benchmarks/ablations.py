"""What decides how well a grounding module grounds: stage 2 again and again, one change at a time.

    python benchmarks/ablations.py --out runs/ablations

Every variant is trained and tested on shards of its own stage 1, which keeps the latents of several
steps. A killed run goes on where it was; `ablations.json`, the plot and the table hold what is
done so far.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ablation_variants import DATA, OWN_LABELS, QUESTIONS, TAP_STEPS, Variant
from rich.console import Console
from rich.table import Table

from ovseg.quickstart import config, fill
from ovseg.report.numbers import COLUMNS, percent
from ovseg.steps import Step, run_steps, write_text

BACKBONE = "data.init_args.backbone.init_args"


class Run(NamedTuple):
    """Where everything is, and what is run."""

    out: Path
    module: str
    settings: dict


def plan(run: Run) -> list[Step]:
    """Write the configs, and return the steps that make the shards, train and test."""
    folder, steps = run.out / "configs", []
    first = load(run, "1_annotated")
    place(first, {f"{BACKBONE}.tap_steps": list(TAP_STEPS)})
    streams = first["data"]["init_args"]["predict"]
    for name, changes in DATA.items():
        stage = copy.deepcopy(first)
        if changes:
            stream = copy.deepcopy(streams["train"])
            place(stream["init_args"], changes)
            stage["data"]["init_args"]["predict"] = {"train": stream}
        steps.append(images(run, name, stage))
    bases = [folder / "2_grounding.yaml"]
    second = load(run, "2_grounding")
    point_to(second, run.out / "data")
    write(bases[0], second)
    if run.module == "fusion":
        bases.append(write(folder / "2_fusion.yaml", load(run, "2_fusion")))
    for variant in variants(run.module):
        name = f"{run.module}/{variant.name}"
        path = write(folder / run.module / f"{variant.name}.yaml", overlay(run, variant))
        paths = (*bases, path)
        arguments = ("fit", *(part for p in paths for part in ("--config", str(p))))
        step = (name, f"{run.module}: {variant.what}", run.module)
        steps.append(Step(*step, (*arguments, "--then_test", "true"), paths))
        if name == "probe/default":
            steps.append(own_labels(run, size=streams["train"]["init_args"]["size"]))
    return steps


def images(run: Run, name: str, stage: dict) -> Step:
    """Write the config of a training set, and return the step that makes it."""
    writer = stage["trainer"]["callbacks"][0]["init_args"]
    writer["output"] = str(run.out / "data" / name / "{name}")
    path = write(run.out / "configs" / f"data_{name}.yaml", stage)
    arguments = ("predict", "--config", str(path))
    return Step(f"data/{name}", f"images: {name}", "data", arguments, (path,))


def own_labels(run: Run, size: int) -> Step:
    """Return the step that lets the default module label images of all names."""
    stage = load(run, "3_synthetic")
    streams = stage["data"]["init_args"]
    stream = streams["predict"]["synthetic"]
    folder = run.out / "probe" / "default" / "grounder"
    place(stream["init_args"], {"size": size, "annotator.init_args.folder": str(folder)})
    streams["predict"] = {"train": stream}
    return images(run, OWN_LABELS, stage)


def variants(module: str) -> Iterator[Variant]:
    """Return each variant that a module has once; the default comes first."""
    every = [variant for question in QUESTIONS for variant in question.variants]
    for variant in {variant.name: variant for variant in every}.values():
        if module in variant.modules:
            yield variant


def load(run: Run, name: str) -> dict:
    """Return a shipped clip-art config with this run's folder, split and seed."""
    data = yaml.safe_load(config(name).read_text(encoding="utf-8"))
    return fill(data, run.out, **run.settings)


def point_to(stage: dict, data: Path) -> None:
    """Let the streams of stage 2 read this run's shards."""
    streams = stage["data"]["init_args"]
    for stream in (streams["train"], *streams["val"].values(), *streams["test"].values()):
        name = Path(stream["init_args"]["path"]).name
        stream["init_args"]["path"] = str(data / "annotated" / name)


def overlay(run: Run, variant: Variant) -> dict:
    """Return a variant's own layer: its changes, its folder, checkpoints to go on from."""
    out = run.out / run.module / variant.name
    checkpoints = {"dirpath": str(out / "checkpoints"), "save_last": True}
    checkpoints |= {"every_n_train_steps": 125 if run.module == "probe" else 150}
    layer: dict = {}
    place(layer, {"trainer.default_root_dir": str(out)})
    place(layer, {"model.init_args.output": str(out / "grounder")})
    layer["trainer"]["callbacks"] = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoints},
        {"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"},
    ]
    changes = {key: value for key, value in variant.changes.items() if key != "data"}
    place(layer, changes)
    if "data" in variant.changes:
        path = run.out / "data" / variant.changes["data"] / "train"
        place(layer, {"data.init_args.train.init_args.path": str(path)})
    return layer


def place(config: dict, changes: dict[str, Any]) -> None:
    """Set values at dotted keys."""
    for key, value in changes.items():
        *parents, last = key.split(".")
        inner = config
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value


def write(path: Path, content: dict) -> Path:
    """Write a config."""
    write_text(path, yaml.safe_dump(content, sort_keys=False))
    return path


def collect(out: Path) -> dict[str, dict]:
    """Return what is done: per module and variant mIoU of every column, and presence."""
    table: dict[str, dict] = {}
    for path in sorted(out.glob("*/*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        row = {column: results[column]["miou"] for column in COLUMNS}
        row["presence"] = results["two_unseen"].get("presence")
        table.setdefault(path.parent.parent.name, {})[path.parent.name] = row
    return table


def show(table: dict[str, dict], console: Console) -> None:
    """Print one table per question, with the paper's finding above it."""
    for question in QUESTIONS:
        printed = Table(title=question.title, caption=question.paper, title_justify="left")
        for column in ("", "module", *COLUMNS, "presence"):
            printed.add_column(column.replace("_", " "), justify="left" if not column else "right")
        for variant in question.variants:
            for module in variant.modules:
                row = table.get(module, {}).get(variant.name)
                if row:
                    values = (percent(row[column]) for column in (*COLUMNS, "presence"))
                    printed.add_row(variant.what, module, *values)
        if printed.rows:
            console.print(printed)


def plot(table: dict[str, dict], path: Path) -> None:
    """Draw seen and unseen mIoU of two-object images, one panel per question and module."""
    from matplotlib.figure import Figure

    panels = [
        (question, module, rows)
        for question in QUESTIONS
        for module in table
        if len(rows := [v for v in question.variants if v.name in table[module]]) > 1
    ]
    heights = [len(rows) + 1.2 for _, _, rows in panels]
    figure = Figure(figsize=(9, 0.42 * sum(heights) + 0.5), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False, sharex=True)
    for axes, (question, module, rows) in zip(all_axes[:, 0], panels, strict=True):
        for offset, column, color in (
            (-0.2, "two_seen", "#4477aa"),
            (0.2, "two_unseen", "#ee6677"),
        ):
            values = [table[module][variant.name][column] for variant in rows]
            places = [place + offset for place in range(len(rows))]
            axes.barh(
                places, values, height=0.36, color=color, label=column.replace("_", ", both ")
            )
            for place_, value in zip(places, values, strict=True):
                axes.annotate(f" {value:.1f}", (value, place_), va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [variant.what for variant in rows])
        axes.set_title(f"{question.title} ({module})", loc="left", fontsize=10)
        axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="mIoU, images of two objects")
    handles, labels = all_axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is missing, then print, plot and store the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--module", choices=("probe", "fusion"), default="probe")
    parser.add_argument("--split", default="1")
    parser.add_argument("--scale", type=float, default=1.0, help="as of `ovseg quickstart`")
    parser.add_argument("--show", action="store_true", help="run nothing, show what is done")
    args = parser.parse_args()
    out = args.out.absolute()
    settings = {"split": args.split, "seed": 0, "scale": args.scale}
    if not args.show:
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
        run_steps(out, plan(Run(out, args.module, settings)), environment)
    table = collect(out)
    if not table:
        parser.error(f"nothing is done in {out}: leave --show out")
    write_text(out / "ablations.json", json.dumps(table, indent=1))
    plot(table, out / "ablations.png")
    show(table, Console(width=150))


if __name__ == "__main__":
    main()
