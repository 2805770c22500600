"""Make the README's picture from a quickstart: generated images and the masks of their names.

python tools/output_picture.py --run runs/quickstart --out docs/output.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ovseg.errors import run_tool
from ovseg.quickstart import run_settings
from ovseg.report.pictures import Picture, load_pictures, overlay
from ovseg.vocabulary import Vocabulary

SCALE, GAP, LINE = 3, 12, 18
COLUMNS = ("two_seen", "two_mixed", "two_unseen")


def tile(picture: Picture, vocabulary: Vocabulary) -> Image.Image:
    """Draw an image, the same with its masks, and the prompt with the names in their colours."""
    side = picture.image.shape[0] * SCALE
    image = Image.fromarray(picture.image).resize((side, side), Image.Resampling.NEAREST)
    labels = picture.maps["prediction"]
    masked = image.convert("RGBA")
    names = {}
    for class_id in np.unique(labels[(labels > 0) & (labels < 255)]):
        entry = vocabulary[int(class_id)]
        large = np.kron(labels == class_id, np.ones((SCALE, SCALE))) > 0
        masked.alpha_composite(Image.fromarray(overlay(large, entry.color)))
        names[entry.name] = entry.color
    canvas = Image.new("RGB", (2 * side + 2, side + 2 * LINE), "white")
    canvas.paste(image, (0, 0))
    canvas.paste(masked.convert("RGB"), (side + 2, 0))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    pen.text((0, side + 3), picture.caption, "#333333", font)
    place = 0
    for name, color in names.items():
        pen.rectangle((place, side + LINE + 5, place + 10, side + LINE + 15), color, "#888888")
        pen.text((place + 15, side + LINE), name, "#333333", font)
        place += 30 + int(pen.textlength(name, font))
    return canvas


def main(argv: Sequence[str] | None = None) -> int:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--out", type=Path, default=Path("docs/output.png"))
    parser.add_argument("--per-row", type=int, default=2)
    args = parser.parse_args(argv)
    return run_tool(
        "output_picture", lambda: lay_out(args.run, args.per_row).save(args.out, optimize=True)
    )


def lay_out(run: Path, per_row: int) -> Image.Image:
    """Lay out a row per test column of two objects.

    Raises:
        FileNotFoundError: If the folder holds no run, or no pictures of it.
        ValueError: If a row would be empty.
    """
    if per_row < 1:
        raise ValueError(f"--per-row must be >= 1, got {per_row}")
    vocabulary = Vocabulary.load("clipart", run_settings(run)["split"])
    folder = run / "2_grounding" / "pictures"
    rows = [
        [tile(picture, vocabulary) for picture in load_pictures(folder / column, per_row)]
        for column in COLUMNS
    ]
    if not all(rows):
        raise FileNotFoundError(
            f"no pictures in {folder}: run `ovseg quickstart --out {run}` first"
        )
    width, height = rows[0][0].size
    sheet = Image.new(
        "RGB", (per_row * (width + GAP) + GAP, len(rows) * (height + GAP) + GAP), "white"
    )
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (GAP + x * (width + GAP), GAP + y * (height + GAP)))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
