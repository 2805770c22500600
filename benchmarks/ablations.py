"""What each part of the grounding module is worth: stage 2 again and again, one change at a time.

    python benchmarks/ablations.py --run runs/quickstart --out runs/ablations

Every variant is trained and tested on the shards of a finished quickstart. A killed run goes on
where it was; a variant added at the end of the list leaves the others alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from ovseg.report.numbers import COLUMNS, percent
from ovseg.steps import Step, run_steps, write_text


def head(**arguments: Any) -> dict:
    """Return an overlay of the grounder's own arguments."""
    return {"model": {"init_args": {"grounder": {"init_args": arguments}}}}


def trained(**arguments: Any) -> dict:
    """Return an overlay of the module's arguments."""
    return {"model": {"init_args": arguments}}


def limited(samples: int) -> dict:
    """Return an overlay that trains on the first samples only."""
    return {"data": {"init_args": {"train": {"init_args": {"limit": samples}}}}}


VARIANTS: dict[str, tuple[str, dict]] = {
    "default": ("as shipped", {}),
    "no_probes": ("no probes", head(probes=False)),
    "no_text": ("no name embedding in the head", head(text=False)),
    "no_others": ("names do not see each other's probes", head(others=False)),
    "no_prototypes": ("no second mask from prototypes", head(prototypes=False)),
    "no_dropout": ("name embedding never hidden in training", head(text_dropout=0.0)),
    "wide": ("coarse maps as wide as fine ones", head(widths=[112, 112, 112])),
    "dice": ("with Dice loss", trained(dice=1.0)),
    "negatives": ("with names that are not there, to be left empty", trained(negatives=1)),
    "half": ("half of the training images", limited(768)),
    "eighth": ("an eighth of the training images", limited(192)),
}


def plan(run: Path, out: Path) -> list[Step]:
    """Write each variant's overlay and return the steps that train and test it."""
    base, steps = run / "configs" / "2_grounding.yaml", []
    for name, (what, overlay) in VARIANTS.items():
        path = out / "configs" / f"{name}.yaml"
        place = {
            "trainer": {"default_root_dir": str(out / name), "callbacks": callbacks(out, name)}
        }
        model = overlay.get("model", {}).get("init_args", {})
        model = {"output": str(out / name / "grounder"), **model}
        content = {**place, **overlay, "model": {"init_args": model}}
        write_text(path, yaml.safe_dump(content, sort_keys=False))
        configs = (base, path)
        given = tuple(part for config in configs for part in ("--config", str(config)))
        start = ("--model.init_args.start", str(out / name / "grounder"))
        steps += [
            Step(name, f"{what}: training", name, ("fit", *given), configs),
            Step(f"{name}/test", f"{what}: test", name, ("test", *given, *start), configs),
        ]
    return steps


def callbacks(out: Path, name: str) -> list[dict]:
    """Return the callbacks of a variant: checkpoints to go on from, and a progress bar."""
    checkpoints = {"dirpath": str(out / name / "checkpoints"), "save_last": True}
    checkpoints |= {"every_n_train_steps": 125}
    return [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoints},
        {"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"},
    ]


def collect(out: Path) -> dict[str, dict]:
    """Return mIoU per column, and presence on two unseen objects, of each variant."""
    table = {}
    for name, (what, _) in VARIANTS.items():
        results = json.loads((out / name / "results.json").read_text(encoding="utf-8"))
        row = {column: results[column]["miou"] for column in COLUMNS}
        table[name] = {"what": what, **row, "presence": results["two_unseen"]["presence"]}
    return table


def show(table: dict[str, dict], console: Console) -> None:
    """Print the table."""
    printed = Table(title="Stage 2, one change at a time: mIoU", title_justify="left")
    printed.add_column("")
    columns = [*COLUMNS, "presence"]
    for column in columns:
        printed.add_column(column.replace("_", " "), justify="right")
    for row in table.values():
        printed.add_row(row["what"], *(percent(row[column]) for column in columns))
    console.print(printed)


def plot(table: dict[str, dict], path: Path) -> None:
    """Draw seen and unseen mIoU of two-object images side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.5 * len(table) + 1.2), layout="constrained")
    axes = figure.add_subplot(xlabel="mIoU, images of two objects", xlim=(0, 100))
    for offset, column, color in ((-0.2, "two_seen", "#4477aa"), (0.2, "two_unseen", "#ee6677")):
        places = [place + offset for place in range(len(table))]
        values = [row[column] for row in table.values()]
        axes.barh(places, values, height=0.36, color=color, label=column.replace("_", ", both "))
        for place, value in zip(places, values, strict=True):
            axes.annotate(f" {value:.1f}", (value, place), verticalalignment="center")
    axes.set_yticks(range(len(table)), [row["what"] for row in table.values()])
    axes.invert_yaxis()
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run what is missing, then print, plot and store the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    args = parser.parse_args()
    run, out = args.run.absolute(), args.out.absolute()
    if not (run / "1_annotated" / "train" / "dataset.json").is_file():
        parser.error(f"no finished stage 1 in {run}: run `ovseg quickstart --out {run}` first")
    run_steps(out, plan(run, out), {"TOKENIZERS_PARALLELISM": "false"})
    table = collect(out)
    write_text(out / "ablations.json", json.dumps(table, indent=1))
    plot(table, out / "ablations.png")
    show(table, Console())


if __name__ == "__main__":
    main()
