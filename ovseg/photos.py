"""Photographs as people have them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def find_photos(paths: Sequence[Path]) -> list[Path]:
    """Return the files given and the photos in the folders given, sorted within one, each once.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder holds no photo.
    """
    found: list[Path] = []
    for path in paths:
        photos = [path]
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            photos = [p for p in inside if not p.is_dir()]
        if not path.exists() or not photos:
            what = f"no photo ({', '.join(sorted(SUFFIXES))}) in" if path.is_dir() else "no file"
            raise FileNotFoundError(f"{what} {path}")
        found += photos
    first: dict[str, Path] = {}
    for photo in found:
        first.setdefault(os.path.abspath(photo), photo)
    return list(first.values())


def load_photo(path: Path) -> Image.Image:
    """Read a photo as upright 8-bit RGB; transparency becomes white.

    Raises:
        ValueError: If it cannot be decoded.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as file:
            warnings.simplefilter("ignore")  # damaged metadata, more pixels than most have
            photo = ImageOps.exif_transpose(file)
            if photo.mode.startswith(("I", "F")):  # 16 bits or more: spread what is there
                values = np.asarray(photo, np.float64)
                spread = (values - values.min()) / max(np.ptp(values), 1e-12)
                photo = Image.fromarray((255 * spread).round().astype(np.uint8))
            if photo.has_transparency_data:
                photo = photo.convert("RGBA")
                photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
            return photo.convert("RGB")
    except Exception as error:  # in damaged files Pillow's decoders stumble over anything
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be decoded: {why}") from None
