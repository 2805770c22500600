"""Where a quickstart's time goes, from a sampling profile of all its processes.

    pip install py-spy
    py-spy record --subprocesses --rate 20 --format raw --output runs/profile.raw -- \
        ovseg quickstart --out runs/profiled
    python benchmarks/where_time_goes.py runs/profile.raw
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

KINDS = {
    "optimizer (Muon, AdamW)": ["_zeropower", "torch/optim/_muon.py", "torch/optim/adamw.py"],
    "U-Net": ["UNet2DConditionModel.forward"],
    "autoencoder": ["AutoencoderKL.", "ovseg/backbones/autoencoder.py"],
    "text encoder": ["CLIPTextModel", "ovseg/backbones/encoders.py"],
    "annotator": ["ovseg/annotators/mmseg.py"],
    "grounding modules": ["ovseg/grounders/", "GroundingModule."],
    "segmenter": ["SegmentationModule.", "ovseg/segmenters/"],
    "training, backward": ["_engine_run_backward"],
    "start-up: imports": ["_find_and_load", "<module> (torch/", "<module> (lightning/"],
}
"""Kinds of work and what a stack of theirs contains; the first that fits counts."""

CONFIGURATION = ["jsonargparse/", "lightning/pytorch/cli.py"]
"""Also around all the rest of a verb, so asked only where nothing else fits."""


def kind_of(stack: str) -> str:
    """Return the kind of work of a stack, outermost frame first."""
    for kind, marks in KINDS.items():
        if any(mark in stack for mark in marks):
            return kind
    running = "LightningCLI._run_subcommand" in stack
    if not running and any(mark in stack for mark in CONFIGURATION):
        return "start-up: configuration"
    return "the rest: data, collectives, files"


def shares(text: str) -> dict[str, float]:
    """Return the share of each kind in percent, largest first.

    Args:
        text: Lines ``frame;frame;... count`` of busy threads, as py-spy writes them.
    """
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        if stack:
            counts[kind_of(stack)] += int(count)
    if not counts:
        raise ValueError("the profile holds no stack: was it recorded with --format raw?")
    return {kind: 100 * n / counts.total() for kind, n in counts.most_common()}


def main() -> None:
    """Print the table of one profile."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("profile", type=Path, help="py-spy's raw output")
    args = parser.parse_args()
    if not args.profile.is_file():
        parser.error(f"no file {args.profile}; the head of this script says how to record one")
    table = Table("", "% of all processes' busy time")
    for kind, share in shares(args.profile.read_text(encoding="utf-8")).items():
        table.add_row(kind, f"{share:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
