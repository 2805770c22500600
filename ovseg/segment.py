"""``ovseg segment``: masks of named things in photographs."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ovseg.device import find_device
from ovseg.errors import VerbParser
from ovseg.grounders.folder import find_grounder, folder_digest
from ovseg.photos import find_photos, load_photo
from ovseg.pipeline import GroundedDiffusion
from ovseg.report.pictures import overlay, voc_color, voc_picture
from ovseg.steps import write_text
from ovseg.windows import see

RECORD = "segments.json"
"""What a photo's record is called, after its stem."""

PICTURES = ("labels", "overlay")
"""What its pictures are called, before ``.png``."""


def main(argv: Sequence[str]) -> int:
    """Segment photos; those that are done, the same bytes with the same settings, are left.

    Returns:
        2 if a photo could not be decoded (the others are done), else 0.

    Raises:
        FileNotFoundError: If a photo or the model is missing.
        ValueError: If an argument is wrong.
        PermissionError: If the folder cannot be written.
    """
    args = _parse(argv)
    names = _names(args.names)
    photos = find_photos(args.photos)
    _check_different(photos)
    if args.out.resolve() in {photo.resolve().parent for photo in photos}:
        raise ValueError(f"--out {args.out} is a folder of the photos: choose another one")
    settings = {key: getattr(args, key) for key in ("prompt", "seed", "samples", "tiled")}
    source = find_grounder(args.model)
    facts = {"names": names, "model": folder_digest(source), **settings}
    facts |= {"min_area": args.min_area, "inversion_steps": args.inversion_steps}
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(f"cannot write to {args.out} ({error.strerror})") from None
    pending = [p for p in photos if not _done(args.out, p, facts)]
    failed = 0
    if pending:
        model = _load(source, args)
        for path in tqdm(pending, desc="photos", initial=len(photos) - len(pending)):
            try:
                digest = _digest(path)  # of bytes that are no newer than what is decoded
                photo = load_photo(path)
            except ValueError as error:
                tqdm.write(f"ovseg segment: {error}", file=sys.stderr)
                failed += 1
                continue
            labels, found = segment(model, photo, names, args.min_area, settings)
            if absent := [name for name in names if not found[name]["present"]]:
                tqdm.write(f"{path}: no {', no '.join(absent)}")
            try:
                write(args.out, path, photo, labels, found, {**facts, "digest": digest})
            except OSError as error:
                raise OSError(
                    f"cannot write to {args.out} ({error.strerror}): what is done is kept, the "
                    "same command goes on from there"
                ) from None
    print(f"{len(photos) - failed} of {len(photos)} photos are in {args.out}")
    return 2 if failed else 0


def segment(
    model: GroundedDiffusion, photo: Image.Image, names: list[str], min_area: float, settings: dict
) -> tuple[np.ndarray, dict[str, dict]]:
    """Find names in a photo.

    Returns:
        Label map ``(H, W)`` uint8: 0 where no name is, else 1 + the place of the likeliest name in
        ``names``; and of each name its id, the share of the photo that its mask covers, the mean
        probability there ("score") and the largest ("peak"), and whether it is in the picture.
    """
    labels = np.zeros((photo.height, photo.width), np.uint8)
    best = np.full(labels.shape, 0.5, np.float32)
    found = {}
    maps = zip(names, see(model, photo, names, **settings), strict=True)
    for place, (name, soft) in enumerate(maps, start=1):
        mask = soft >= 0.5
        found[name] = {
            "id": place,
            "present": bool(mask.mean() >= min_area),
            "area": round(float(mask.mean()), 6),
            "score": round(float(soft[mask].mean()), 4) if mask.any() else None,
            "peak": round(float(soft.max()), 4),
        }
        if found[name]["present"]:
            wins = soft >= best
            labels[wins], best[wins] = place, soft[wins]
    return labels, found


def write(
    out: Path, path: Path, photo: Image.Image, labels: np.ndarray, found: dict, facts: dict
) -> None:
    """Write ``STEM.labels.png``, ``STEM.overlay.png`` and, last, ``STEM.segments.json``."""
    record = out / f"{path.stem}.{RECORD}"
    record.unlink(missing_ok=True)  # it never stands beside pictures of another run
    pictures = (voc_picture(labels), draw(photo, labels, found))
    for part, image in zip(PICTURES, pictures, strict=True):
        partial = out / f".{path.stem}.{part}.{os.getpid()}.tmp"
        try:
            image.save(partial, format="PNG")
            os.replace(partial, out / f"{path.stem}.{part}.png")
        finally:
            partial.unlink(missing_ok=True)
    size = {"width": photo.width, "height": photo.height}
    content = {"photo": str(path), **size, "found": found, "settings": facts}
    write_text(record, json.dumps(content, indent=2) + "\n")


def draw(photo: Image.Image, labels: np.ndarray, found: dict[str, dict]) -> Image.Image:
    """Paint the masks over a photo of at most 1024 pixels, with a list of the names below."""
    scale = min(1024 / max(photo.size), 1 if max(photo.size) > 256 else 4)
    size = tuple(max(1, round(side * scale)) for side in photo.size)
    picture = photo.resize(size, Image.Resampling.BICUBIC).convert("RGBA")
    small = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    for facts in found.values():
        layer = overlay(small == facts["id"], voc_color(facts["id"]))
        picture.alpha_composite(Image.fromarray(layer))
    font = ImageFont.load_default(size=14)
    table = Image.new("RGB", (max(size[0], 260), size[1] + 20 * len(found)), "white")
    table.paste(picture.convert("RGB"))
    pen = ImageDraw.Draw(table)
    for row, (name, facts) in enumerate(found.items()):
        y = size[1] + 20 * row
        there = f"{name}  {facts['score']:.2f}" if facts["present"] else f"{name}: not found"
        pen.rectangle((4, y + 4, 16, y + 16), fill=voc_color(facts["id"]))
        pen.text((24, y + 2), there, font=font, fill="black" if facts["present"] else "gray")
    return table


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = VerbParser(prog="ovseg segment", description="Masks of named things in photographs.")
    parser.add_argument("photos", nargs="+", type=Path, help="photos, or folders of photos")
    parser.add_argument("--names", required=True, help='what to find: "cat, sofa, potted plant"')
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--model", default="clipart", help="a grounder folder or Hub id (clipart)")
    parser.add_argument(
        "--prompt",
        default="",
        help="what the photos show; it need not hold the names (a photo of all of them)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--samples", type=int, default=1, help="noise samples to average (1)")
    parser.add_argument(
        "--inversion-steps", type=int, default=0, help="invert in so many steps, no noise (0)"
    )
    parser.add_argument(
        "--tiled", action="store_true", help="look at overlapping squares, not the whole squeezed"
    )
    parser.add_argument(
        "--min-area", type=float, default=0.001, help="least share of a photo that counts (0.001)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    args.device = find_device(args.device)
    if args.samples < 1 or not 0 <= args.min_area < 1 or args.inversion_steps < 0:
        raise ValueError(
            "--samples must be >= 1, --inversion-steps >= 0 and --min-area in [0, 1), got "
            f"{args.samples}, {args.inversion_steps} and {args.min_area}"
        )
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed must be >= 0 and less than 2^63, got {args.seed}")
    if args.samples > 1 and args.inversion_steps:
        raise ValueError("--samples averages draws of the noise, and --inversion-steps has none")
    return args


def _load(source: Path, args: argparse.Namespace) -> GroundedDiffusion:
    model = GroundedDiffusion.from_pretrained(source).to(args.device)
    if args.inversion_steps:
        if not hasattr(model.backbone, "inversion_steps"):
            kind = type(model.backbone).__name__
            raise ValueError(f"{kind} cannot invert pictures: leave --inversion-steps out")
        model.backbone.inversion_steps = args.inversion_steps
    return model


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names) or len(names) > 255:
        raise ValueError(f'--names must be 1 to 255 different names, "cat, sofa"; got {text!r}')
    return names


def _check_different(photos: Sequence[Path]) -> None:
    first: dict[str, Path] = {}
    for photo in photos:
        if (other := first.setdefault(photo.stem, photo)) is not photo:
            raise ValueError(
                f"{other} and {photo} would both be written as {photo.stem}: do them into two "
                "folders"
            )


def _done(out: Path, path: Path, facts: dict) -> bool:
    """Say whether all results of a photo are there, made of its bytes with these settings."""
    try:
        found = json.loads((out / f"{path.stem}.{RECORD}").read_text(encoding="utf-8"))
        digest = _digest(path)
    except (FileNotFoundError, ValueError):  # none, or a damaged one: it is made again
        return False
    pictures = (out / f"{path.stem}.{part}.png" for part in PICTURES)
    same = isinstance(found, dict) and found.get("settings") == {**facts, "digest": digest}
    return same and all(picture.is_file() for picture in pictures)


def _digest(path: Path) -> str:
    """Hex digest of a photo's bytes.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ValueError(f"{path} cannot be decoded: {error.strerror}") from None
