"""Measure the clip-art world that is in the package: what it draws, what its language says.

    python tools/measure_clipart.py --out runs/clipart_measured

Prints the gates of docs/clipart.md and writes clipart.json, gates.png and contact sheets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ovseg.clipart.training.world import measure


def main() -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/clipart_measured"))
    parser.add_argument("--model", default="clipart", help="pipeline folder")
    parser.add_argument("--annotator", default="clipart", help="annotator folder")
    parser.add_argument("--images", type=int, default=400, help="generated images per column")
    parser.add_argument("--scenes", type=int, default=1000, help="drawn scenes for the annotator")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    measure(args.model, args.annotator, args.out, args.images, args.scenes, args.device)


if __name__ == "__main__":
    main()
