"""What stage 4 should be trained on: the regimes A to F and self-training, compared.

    python benchmarks/regimes.py --out runs/regimes

On three splits with three seeds each: a grounding module is trained as in a quickstart, images are
generated, and in each regime of configs/clipart/regimes a segmenter takes as many training steps as
the quickstart's. Two regimes are compared on the same test images, by `ovseg compare`'s bootstrap
of every run and the mean over the runs, on scenes of one and two objects and on scenes of two
alone. Runs of one seed are tested on the same images, which are drawn for all of them together. A
killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table
from splits_and_seeds import SEEDS, SPLITS

from ovseg.compare import MIDDLE, SCORES, Stream, bootstrap, check, read
from ovseg.quickstart import WRITTEN, config, fill
from ovseg.steps import Step, run_steps, write_text

REGIMES = {
    "a_one_object": "A: one object",
    "b_two_objects": "B: two objects",
    "c_mixture": "C: half of each",
    "d_with_real": "D: C + real images of seen classes",
    "e_rich_prompts": "E: D with rich prompts",
    "s_self_training": "S: real images, unseen classes by C",
    "f_supervised": "F: supervised",
}
PAIRS = (
    ("a_one_object", "b_two_objects"),
    ("b_two_objects", "c_mixture"),
    ("a_one_object", "c_mixture"),
    ("c_mixture", "d_with_real"),
    ("d_with_real", "e_rich_prompts"),
    ("d_with_real", "s_self_training"),
    ("c_mixture", "s_self_training"),
    ("c_mixture", "f_supervised"),
)
CLOSING = ("d_with_real", "e_rich_prompts", "s_self_training")
STREAMS = {"both": "scenes of one and two objects", "drawn": "scenes of two objects"}
RESAMPLES = 10_000
ANNOTATED = ("train", "val_one_seen")


def plan(out: Path, settings: dict) -> list[Step]:
    """Write a run's configs, and return the steps that train its grounder and its segmenters.

    Args:
        out: Folder of the run.
        settings: Its `split`, `seed` and `scale`, see `ovseg.quickstart.fill`.
    """

    def copy(name: str) -> Path:
        text = config(name).read_text(encoding="utf-8").replace(f"{WRITTEN}/regimes", WRITTEN)
        filled = fill(yaml.safe_load(text), out, **settings)
        if name == "1_annotated":  # what no training reads stays away
            streams = filled["data"]["init_args"]["predict"]
            filled["data"]["init_args"]["predict"] = {name: streams[name] for name in ANNOTATED}
        path = out / "configs" / f"{name}.yaml"
        write_text(path, yaml.safe_dump(filled, sort_keys=False))
        return path

    def step(name: str, verb: str, *layers: str) -> Step:
        paths = tuple(copy(layer) for layer in layers)
        arguments = [verb, *(part for path in paths for part in ("--config", str(path)))]
        arguments += ["--then_test", "true"] * (name in REGIMES)
        return Step(name, REGIMES.get(name, name), name, tuple(arguments), paths)

    steps = [
        step("1_annotated", "predict", "1_annotated"),
        step("2_grounding", "fit", "2_grounding"),
        step("images", "predict", "3_synthetic", "regimes/1_images"),
    ]
    for name in REGIMES:
        if name == "s_self_training":
            steps.append(step("pseudo", "predict", "regimes/2_pseudo_labels"))
        steps.append(step(name, "fit", "4_segmenter", "regimes/test", f"regimes/{name}"))
    return steps


def collect(out: Path) -> dict[str, dict[str, dict[str, Stream]]]:
    """Return ``{stream: {run: {regime: test}}}`` of the runs in which every regime is done."""
    found = {stream: {} for stream in STREAMS}
    for folder in sorted(out.glob("split-*_seed-*")):
        if all((folder / name / "results.json").is_file() for name in REGIMES):
            tests = {name: read(folder / name) for name in REGIMES}
            for stream, runs in found.items():
                runs[folder.name] = {name: test[stream] for name, test in tests.items()}
    return found


def differences(stream: str, runs: dict[str, dict[str, Stream]]) -> list[dict]:
    """Return the mean difference of each pair of regimes and its 95 % interval over images."""
    rows = []
    for one, two in PAIRS:
        drawn, plain = [], []
        for run, tests in runs.items():
            first, second = tests[one], tests[two]
            check(stream, first, second)
            seed = int(run.rpartition("_seed-")[2])
            areas = np.stack([first.areas[:, :2], second.areas[:, :2]], axis=1)
            drawn.append(bootstrap(areas, first.seen, first.unseen, RESAMPLES, seed))
            plain.append([second.scores[key] - first.scores[key] for key in SCORES])
        low, high = np.percentile(np.mean(drawn, axis=0), MIDDLE, axis=0)
        values = zip(SCORES, np.mean(plain, axis=0), low, high, strict=True)
        rows.append(
            {"one": one, "two": two}
            | {k: {"difference": d, "low": a, "high": b} for k, d, a, b in values}
        )
    return rows


def summary(stream: str, runs: dict[str, dict[str, Stream]]) -> dict:
    """Return mean and spread of every regime, the differences, and how far the gap is closed."""
    scores = {
        name: {
            key: {
                "mean": mean(values := [tests[name].scores[key] for tests in runs.values()]),
                "std": stdev(values) if len(values) > 1 else 0.0,
            }
            for key in SCORES
        }
        for name in REGIMES
    }
    low, high = (scores[name]["harmonic"]["mean"] for name in ("c_mixture", "f_supervised"))
    closed = {name: scores[name]["harmonic"]["mean"] - low for name in CLOSING}
    return {
        "runs": list(runs),
        "scores": scores,
        "differences": differences(stream, runs),
        "gap from C to F": high - low,
        "closed of it": closed,
    }


def show(stream: str, result: dict, console: Console) -> None:
    """Print the tables of a test stream."""
    title = f"{STREAMS[stream]}, {len(result['runs'])} runs, mIoU"
    table = Table("trained on", title=title, title_justify="left")
    for key in SCORES:
        table.add_column(f"{key} ± sd", justify="right")
    for name, label in REGIMES.items():
        row = result["scores"][name]
        table.add_row(label, *(f"{row[k]['mean']:.1f} ± {row[k]['std']:.1f}" for k in SCORES))
    console.print(table)
    table = Table("difference", title="95 % interval over test images", title_justify="left")
    for key in SCORES:
        table.add_column(key, justify="right")
    for row in result["differences"]:
        cells = (
            f"{row[k]['difference']:+.1f} ({row[k]['low']:+.1f} to {row[k]['high']:+.1f})"
            for k in SCORES
        )
        first, second = (REGIMES[row[n]].partition(":")[0] for n in ("one", "two"))
        table.add_row(f"{second} - {first}", *cells)
    console.print(table)
    gap = result["gap from C to F"]
    for name, gained in result["closed of it"].items():
        console.print(f"{REGIMES[name]}: {gained:+.1f} of the {gap:.1f} from C to F")


def main() -> None:
    """Run what is missing, then print and store the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/regimes"))
    parser.add_argument("--show", action="store_true", help="run nothing, show what is done")
    args = parser.parse_args()
    for seed, split in [] if args.show else product(SEEDS, SPLITS):
        out = args.out.absolute() / f"split-{split}_seed-{seed}"
        steps = plan(out, {"split": split, "seed": seed, "scale": 1.0})
        run_steps(out, steps, {"TOKENIZERS_PARALLELISM": "false"})
    found = collect(args.out)
    if not all(found.values()):
        parser.error(f"no run is done in {args.out}: leave --show out")
    results = {stream: summary(stream, runs) for stream, runs in found.items()}
    write_text(args.out / "regimes.json", json.dumps(results, indent=1))
    for stream, result in results.items():
        show(stream, result, Console(width=120))


if __name__ == "__main__":
    main()
