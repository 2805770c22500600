"""Check a downloaded PASCAL VOC 2012, and add the training masks of SBD ("trainaug").

    python tools/prepare_voc.py data/VOCdevkit/VOC2012
    python tools/prepare_voc.py data/VOCdevkit/VOC2012 --sbd data/benchmark_RELEASE/dataset

The first only checks that the files are there; it opens none. The second writes
SegmentationClassAug (VOC's own masks of its train images, SBD's of all others) and, last,
ImageSets/Segmentation/trainaug.txt (10,582 names of the full data sets): train, and what SBD has
beside train and val. Masks that are there already are kept, so that it goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ovseg.data.real_files import reading
from ovseg.report.pictures import voc_picture
from ovseg.results import write_file
from ovseg.structures import IGNORE

LISTS, AUGMENTED = Path("ImageSets/Segmentation"), "SegmentationClassAug"
CLASSES = 21
SHOWN = 3


def read_list(path: Path) -> list[str]:
    """Return the names in a list, in order.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it holds no name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: unpack the archive again, or give another folder")
    names = path.read_text(encoding="utf-8").split()
    if not names:
        raise ValueError(f"{path} holds no name")
    return names


def missing(folder: Path, suffix: str, names: Sequence[str]) -> list[str]:
    """Return a line that says which files of a folder are missing, if any are."""
    if not folder.is_dir():
        return [f"{folder} is missing: {len(names)} files NAME{suffix} belong there"]
    lost = [name for name in names if not (folder / f"{name}{suffix}").is_file()]
    if not lost:
        return []
    more = ", ..." if len(lost) > SHOWN else ""
    first = ", ".join(f"{name}{suffix}" for name in lost[:SHOWN])
    return [f"{folder} lacks {len(lost)} of {len(names)} files: {first}{more}"]


def read_sbd(path: Path) -> np.ndarray:
    """Return the label map ``(H, W)`` uint8 of SBD's ``cls/NAME.mat``.

    Raises:
        ValueError: If the file is damaged, or is none of SBD's.
    """
    from scipy.io import loadmat

    try:
        truth = loadmat(path, squeeze_me=True, struct_as_record=False)["GTcls"]
        return np.atleast_2d(truth.Segmentation).astype(np.uint8, casting="safe")
    except Exception as error:  # scipy raises many kinds
        raise ValueError(
            f"{path} is no label map of SBD: {type(error).__name__}: {error}"
        ) from None


def read_voc(path: Path) -> np.ndarray:
    """Return the label map ``(H, W)`` uint8 of VOC's ``SegmentationClass/NAME.png``.

    Raises:
        ValueError: If the file is damaged, or holds no palette indices.
    """
    with reading(str(path)), Image.open(path) as picture:
        mode, labels = picture.mode, np.asarray(picture)
    if mode not in ("P", "L"):
        raise ValueError(
            f"{path} is a picture of mode {mode}, no label map: take the archive's own PNGs, whose "
            "palette indices are class ids"
        )
    return labels


def convert(source: Path, image: Path, target: Path) -> None:
    """Write a label map as a PNG of class ids with VOC's palette, all or nothing.

    Raises:
        ValueError: If a file is damaged, an id is of no class, or the image has another size.
    """
    labels = read_sbd(source) if source.suffix == ".mat" else read_voc(source)
    wrong = [int(i) for i in np.unique(labels) if i >= CLASSES and i != IGNORE]
    if wrong:
        raise ValueError(f"{source} has ids of no class of VOC: {', '.join(map(str, wrong))}")
    with reading(str(image)), Image.open(image) as picture:
        size = picture.size
    if size != labels.shape[::-1]:
        raise ValueError(
            f"{source} has {labels.shape[1]} x {labels.shape[0]} pixels, {image} has {size[0]} x "
            f"{size[1]}"
        )
    content = BytesIO()
    voc_picture(labels).save(content, format="PNG", optimize=True)
    write_file(target, content.getvalue())


def prepare(voc: Path, sbd: Path | None) -> str:
    """Check what is missing, convert what is not converted, and say in one line what is there.

    Raises:
        FileNotFoundError: If files are missing; a line for each folder.
        ValueError: If a file is damaged.
    """
    train, val = (read_list(voc / LISTS / f"{name}.txt") for name in ("train", "val"))
    own = [*train, *val]
    problems = missing(voc / "JPEGImages", ".jpg", own)
    problems += missing(voc / "SegmentationClass", ".png", own)
    added: list[str] = []
    if sbd is not None:
        named = {name for part in ("train", "val") for name in read_list(sbd / f"{part}.txt")}
        added = sorted(named.difference(own))
        problems += missing(sbd / "cls", ".mat", added)
        problems += missing(voc / "JPEGImages", ".jpg", added)
    if problems:
        raise FileNotFoundError("\n".join(problems))
    found = f"{len(train)} train and {len(val)} val images with masks"
    if sbd is None:
        return f"{voc}: {found}"
    sources = {name: voc / "SegmentationClass" / f"{name}.png" for name in train}
    sources |= {name: sbd / "cls" / f"{name}.mat" for name in added}
    targets = {name: voc / AUGMENTED / f"{name}.png" for name in sources}
    pending = [name for name in sources if not targets[name].is_file()]
    for name in tqdm(pending, desc=AUGMENTED, unit="mask"):
        convert(sources[name], voc / "JPEGImages" / f"{name}.jpg", targets[name])
    names = "".join(f"{name}\n" for name in sources)
    write_file(voc / LISTS / "trainaug.txt", names.encode())
    return f"{voc}: {found}; {len(sources)} names in trainaug.txt, masks made: {len(pending)}"


def main() -> int:
    """Prepare the folder named on the command line; 2 if something is missing or damaged."""
    checks = "Without --sbd it only checks that the files are there; it opens none."
    parser = argparse.ArgumentParser(description=f"{__doc__.splitlines()[0]} {checks}")
    parser.add_argument("voc", type=Path, help="the folder VOC2012 of the devkit")
    parser.add_argument("--sbd", type=Path, help="SBD's folder dataset, with cls and train.txt")
    args = parser.parse_args()
    try:
        print(prepare(args.voc, args.sbd))
    except (OSError, ValueError) as error:
        print("\n".join(f"prepare_voc: {line}" for line in str(error).split("\n")), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
