"""Measure the clip-art world that is in the package: what it draws, what its language says.

python tools/measure_clipart.py --out runs/clipart_measured
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ovseg.annotators.mmseg import MMSegAnnotator
from ovseg.backbones.unet import UNetBackbone
from ovseg.clipart.training.measure import (
    annotator_iou,
    contact_sheet,
    copying,
    generated_share,
    language,
    named_colors,
)
from ovseg.vocabulary import Vocabulary

TAPS = ("down_blocks.1.attentions.0", "mid_block", "up_blocks.1.attentions.1", "up_blocks.2")
"""Where the features are read that names must be told by."""


def main() -> None:
    """Print the numbers and write them, with contact sheets, to a folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/clipart_measured"))
    parser.add_argument("--model", default="clipart", help="pipeline folder")
    parser.add_argument("--annotator", default="clipart", help="annotator folder")
    parser.add_argument("--images", type=int, default=400, help="generated images per column")
    parser.add_argument("--scenes", type=int, default=1000, help="drawn scenes for the annotator")
    parser.add_argument("--steps", type=int, default=8, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    vocabulary = Vocabulary.load("clipart")
    annotator = MMSegAnnotator(args.annotator, classes="all").to(args.device)
    annotator.bind(vocabulary)
    backbone = UNetBackbone(
        args.model, list(TAPS), steps=args.steps, guidance_scale=args.guidance
    ).to(args.device)
    result = {"annotator": annotator_iou(annotator, vocabulary, args.scenes)}
    for objects, name in ((1, "one_object"), (2, "two_objects")):
        result[name], images = generated_share(
            backbone, annotator, vocabulary, objects, args.images
        )
        contact_sheet(images[:40], args.out / f"{name}.png")
    result["copying"] = copying(images)
    result["right_color"] = named_colors(backbone, annotator, vocabulary, args.images // 2)
    result["language"] = language(backbone, annotator, vocabulary, args.images)
    text = json.dumps(result, indent=2)
    (args.out / "clipart.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
