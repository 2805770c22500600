"""Train the models of the clip-art world and write them as diffusers and transformers folders.

    python tools/train_clipart.py text autoencoder unet annotator backbone gates --out runs/clipart

Each stage resumes from its checkpoint in OUT, the U-Net also from a pipeline in OUT/pipeline (say,
a copy of the shipped one); `gates` measures whether the world is good enough for a head to be
trained on it, and plots it; `export` copies the result, in half precision, to where the package
reads it. Loss curves and sample sheets are PNGs in OUT.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ovseg.clipart.training import STAGES


def main() -> None:
    """Run the stages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stages", nargs="+", choices=list(STAGES), help="run in this order")
    parser.add_argument("--out", type=Path, default=Path("runs/clipart"))
    parser.add_argument("--steps", type=int, help="steps of each stage (default: the stage's own)")
    parser.add_argument("--batch", type=int, help="batch size (default: the stage's own)")
    parser.add_argument("--lr", type=float, help="peak learning rate (unet only)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.lr and args.stages != ["unet"]:
        parser.error("--lr is an argument of the stage unet alone")
    given = {k: v for k in ("steps", "batch", "lr") if (v := getattr(args, k))}
    for stage in args.stages:
        own = {} if stage in ("gates", "export") else given
        STAGES[stage](args.out / "pipeline", args.out, seed=args.seed, device=args.device, **own)


if __name__ == "__main__":
    main()
