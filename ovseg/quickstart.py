"""``ovseg quickstart``: the four stages end to end on the embedded clip-art world.

Every stage is a child process ``python -m ovseg VERB --config ...`` of a shipped YAML, copied to
``DIR/configs`` with this run's folder, seed, split and scale filled in. See `ovseg.steps` for how a
killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ovseg.data.json_file import read_json
from ovseg.errors import VerbParser
from ovseg.steps import Step, StepFailed, locked, run_steps, write_text
from ovseg.vocabulary import Vocabulary

STAGES = (
    "1_annotated",
    "2_grounding",
    "2_fusion",
    "2_attention",
    "3_synthetic",
    "4_segmenter",
    "4_supervised",
)
SETTINGS = ("split", "seed", "scale")
RUN = "quickstart.json"
"""Holds the settings of a folder's run."""

WRITTEN = "runs/clipart"
"""Where the shipped configs write to."""

LEAST = {"size": 48, "limit": 48, "batch_size": 8}
LEAST |= dict.fromkeys(("max_steps", "T_max", "every_n_train_steps", "val_check_interval"), 1)
"""What ``--scale`` multiplies, and the least that is left of it."""


def config(name: str) -> Path:
    """Return the path of a shipped clip-art config, e.g. "1_annotated"."""
    return Path(str(files("ovseg"))) / "clipart" / "configs" / f"{name}.yaml"


def main(argv: Sequence[str]) -> int:
    """Run or resume the chain, and show its report.

    Raises:
        ValueError: If an argument is wrong, or the folder holds another run or a damaged one.
        PermissionError: If the folder cannot be written.
    """
    args = _parse(argv)
    Vocabulary.load("clipart", args.split)  # an unknown split is told before anything is made
    out = args.out.absolute()
    settings = {key: getattr(args, key) for key in SETTINGS}
    _check(out, settings)  # before it waits for a run that it would refuse
    with ExitStack() as held:
        try:
            lock = held.enter_context(locked(out))
            _check(out, settings)
            write_text(out / RUN, json.dumps(settings))
            write_configs(out, settings)
        except OSError as error:
            reason = f"cannot write to {out} ({error.strerror}): choose another --out"
            raise PermissionError(reason) from None
        # so that the child is ended too
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            run_steps(out, plan(out), {"TOKENIZERS_PARALLELISM": "false"}, lock)
        except StepFailed as error:
            print(f"ovseg quickstart: {error}", flush=True)
            return error.code
        finally:
            signal.signal(signal.SIGTERM, before)
    from ovseg.report.terminal import show

    show(json.loads((out / "report.json").read_text(encoding="utf-8")))
    print(f"\n{out / 'report.html'}\n{out / 'report.json'}")
    return 0


def plan(out: Path) -> list[Step]:
    """Return the steps of a run in its folder; `write_configs` must have been called."""
    configs = out / "configs"

    def step(title: str, verb: str, *layers: str) -> Step:
        paths = tuple(configs / f"{layer}.yaml" for layer in layers)
        arguments = [verb, *(part for path in paths for part in ("--config", str(path)))]
        if verb != "predict":
            arguments += ["--then_test", "true"]  # saves a start of all processes
        stage = {"2": "2_grounding", "4": "4_segmenter"}.get(layers[-1][0], layers[-1])
        return Step(layers[-1], title, stage, tuple(arguments), paths)

    return [
        step("stage 1, annotated images", "predict", "1_annotated"),
        step("stage 2, the grounding module", "fit", "2_grounding"),
        step("stage 2, the paper's module", "fit", "2_grounding", "2_fusion"),
        step("stage 2, the attention baseline", "validate", "2_attention"),
        step("stage 3, the synthetic dataset", "predict", "3_synthetic"),
        step("stage 4, a segmenter from the synthetic dataset", "fit", "4_segmenter"),
        step("stage 4, one from drawn scenes", "fit", "4_segmenter", "4_supervised"),
        Step("report", "the report", "report", ("report", str(out))),
    ]


def write_configs(out: Path, settings: dict) -> None:
    """Copy the shipped configs to ``out/configs`` with a run's settings filled in."""
    for name in STAGES:
        path = out / "configs" / f"{name}.yaml"
        data = yaml.safe_load(config(name).read_text(encoding="utf-8"))
        plain = {"sort_keys": False, "allow_unicode": True, "width": math.inf}  # paths stay whole
        write_text(path, yaml.safe_dump(fill(data, out, **settings), **plain))


def fill(value: Any, out: Path, split: str, seed: int, scale: float, key: str = "") -> Any:
    """Return a config with the output folder, split, seeds and sizes of a run.

    Args:
        value: The config, or a part of it.
        out: Replaces `WRITTEN`.
        split: Split of the vocabulary.
        seed: Becomes `seed_everything`; a thousand times as much is added to every stream's seed.
        scale: Multiplies what `LEAST` names.
        key: The part's own key.
    """
    settings = {"out": out, "split": split, "seed": seed, "scale": scale}
    if isinstance(value, dict):
        return {k: fill(v, key=str(k), **settings) for k, v in value.items()}
    if isinstance(value, list):
        return [fill(item, **settings) for item in value]
    replaced = {"split": split, "seed_everything": seed}
    if key in replaced:
        return replaced[key]
    if key == "seed":
        return value + 1000 * seed
    if key in LEAST and isinstance(value, int):
        return max(min(value, LEAST[key]), round(value * scale))
    if isinstance(value, str) and value.startswith(WRITTEN):
        return str(out) + value.removeprefix(WRITTEN)
    return value


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = VerbParser(prog="ovseg quickstart", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--seed", type=int, default=0, help="another one: other samples (0)")
    parser.add_argument("--split", default="1", help="split of the vocabulary: 1, 2 or 3 (1)")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="multiply all sizes and steps; below 1 a trial whose numbers mean little (1.0)",
    )
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise ValueError(f"--seed must be >= 0, got {args.seed}")
    if not 0 < args.scale < float("inf"):
        raise ValueError(f"--scale must be a positive number, got {args.scale}")
    return args


def run_settings(out: Path) -> dict[str, Any]:
    """Read the settings of a folder's run.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If the file is damaged.
    """
    path = out / RUN
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: run `ovseg quickstart --out {out}` to its end")
    return read_json(path, SETTINGS, "delete it and run `ovseg quickstart` again")


def _check(out: Path, settings: dict) -> None:
    """Refuse a folder that holds another run.

    Raises:
        ValueError: If it does, or what it holds cannot be told.
    """
    if (out / RUN).is_file() and (there := run_settings(out)) != settings:
        raise ValueError(f"{out} holds a run with {there}, not {settings}: choose another --out")
