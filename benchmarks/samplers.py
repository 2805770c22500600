"""How many steps the clip-art world needs: images that show both objects, by solver and guidance.

python benchmarks/samplers.py --out runs/samplers.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ovseg.annotators.mmseg import MMSegAnnotator
from ovseg.backbones.unet import UNetBackbone
from ovseg.clipart.training.measure import generated_share
from ovseg.steps import write_text
from ovseg.vocabulary import Vocabulary

SEED = 800_000
"""Not that of the gates, which judge what is chosen here."""

CASES = [
    ("DPMSolverMultistepScheduler", 2.5, 8),
    ("UniPCMultistepScheduler", 2.5, 6),
    ("UniPCMultistepScheduler", 2.5, 8),
    ("UniPCMultistepScheduler", 2.5, 10),
    ("UniPCMultistepScheduler", 3.0, 6),
    ("UniPCMultistepScheduler", 3.0, 8),
    ("UniPCMultistepScheduler", 3.5, 6),
]


def share(solver: str, guidance: float, steps: int, images: int) -> float:
    """Return the share of two-object images, in percent, in which both were found."""
    vocabulary = Vocabulary.load("clipart")
    oracle = MMSegAnnotator("clipart", classes="all")
    oracle.bind(vocabulary)
    backbone = UNetBackbone(
        "clipart",
        ["mid_block"],
        dtype="auto",
        steps=steps,
        guidance_scale=guidance,
        scheduler={"class_path": f"diffusers.{solver}"},
    )
    return generated_share(backbone, oracle, vocabulary, 2, images, seed=SEED)[0]["good"]


def main(argv: list[str] | None = None) -> None:
    """Measure every case, printing as they come."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args(argv)
    rows = []
    for solver, guidance, steps in CASES:
        good = share(solver, guidance, steps, args.images)
        rows.append({"solver": solver, "guidance": guidance, "steps": steps, "both": good})
        print(f"{solver}, guidance {guidance}, {steps} steps: {good:.1f} %", flush=True)
    table = Table(*rows[0], title="Two-object images that show both, percent")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    if args.out:
        write_text(args.out, json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
