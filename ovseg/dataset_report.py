"""``ovseg report``: one HTML page about a dataset; a quickstart's report, made again."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ovseg.data.about import about
from ovseg.data.contents import digest_of
from ovseg.data.fetch import local_path
from ovseg.data.manifest import (
    DATASET,
    REQUEST,
    done_shards,
    plan_shards,
    read_manifest,
    read_request,
)
from ovseg.data.shard_file import REJECTED, index_shard, shard_name
from ovseg.data.shard_format import Record, decode_record
from ovseg.data.yields import Yield
from ovseg.errors import VerbParser
from ovseg.report.dataset import Tally
from ovseg.report.dataset_page import Card, Report, layer, render, thumbnail
from ovseg.report.duplicates import difference_hash, near_duplicates
from ovseg.steps import partial_of, write_text
from ovseg.structures import Entity

TWINS = 12
"""Shown pairs of near duplicates."""


class Place(NamedTuple):
    """Where a sample lies.

    Attributes:
        shard: Its tar.
        members: ``{extension: (offset, size)}``.
    """

    shard: Path
    members: dict[str, tuple[int, int]]

    def read(self, extension: str) -> bytes:
        """Return one member."""
        offset, size = self.members[extension]
        with self.shard.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def record(self) -> Record:
        """Return what is said of the sample.

        Raises:
            ValueError: If it cannot be read.
        """
        try:
            return decode_record(self.read("json"))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"facts of a sample of {self.shard} cannot be read ({error})"
            ) from None

    def picture(self, extension: str) -> Image.Image:
        """Return its image or mask.

        Raises:
            ValueError: If it cannot be decoded.
        """
        try:
            image = Image.open(io.BytesIO(self.read(extension)), formats=("PNG",))
            image.load()
        except (OSError, SyntaxError) as error:  # the second: broken PNG
            raise ValueError(f"a picture of {self.shard} cannot be read ({error})") from None
        return image


class Contents:
    """What the finished shards of a dataset hold; images are left where they are.

    Args:
        folder: Of the dataset.

    Attributes:
        facts: `dataset.json`, or the configuration and environment of one that is not complete.
        shards: Finished and needed ones, as far as that is known.
        keys: Keys of the classes by id, as far as they are known.
        kept: Numbers of the samples that were kept; ``rejected``: of the others.
        total: The yield.
        places: Of the images of samples that were kept, and of those that were not.

    Raises:
        FileNotFoundError: If there is no dataset, or no finished shard.
        ValueError: If a shard is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts, names, wanted = _described(folder)
        if not names:
            raise FileNotFoundError(f"dataset {folder} has no finished shard yet")
        self.shards = len(names), wanted
        self.keys = dict(enumerate(self.facts["vocabulary"].get("keys", ())))
        self.kept, self.rejected, self.total = Tally(), Tally(), Yield()
        self.places: dict[bool, list[Place]] = {True: [], False: []}
        with tqdm(names, desc="facts") as shards:  # closed before an error is printed
            for name in shards:
                self.total += Yield.of(self._read(name))

    def key_of(self, entity: Entity) -> str:
        """Return the key of an entity's class, or its name if it has none."""
        return self.keys.get(entity.class_id, entity.name) if entity.class_id else entity.name

    def _read(self, name: str) -> Iterator[Record]:
        """Yield what is said of the samples of a shard, and count it."""
        for path in (self.folder / name, self.folder / REJECTED / name):
            for members in index_shard(path) if path.is_file() else ():
                place = Place(path, members)
                record = place.record()
                entities = record.request.entities
                for entity in entities:  # format 1 has no keys: the first name is as good
                    self.keys.setdefault(entity.class_id, entity.name)
                tally = self.kept if record.kept else self.rejected
                ids = [entity.class_id for entity in entities]
                tally.add([self.key_of(entity) for entity in entities], ids, record.facts)
                if "image.png" in members:
                    self.places[record.kept].append(place)
                yield record


def main(argv: Sequence[str]) -> int:
    """Write the page of a dataset, or a quickstart's report.

    Raises:
        FileNotFoundError: If the folder is neither, or holds nothing finished.
        ValueError: If an argument is wrong, or the dataset is damaged.
        OSError: If the page cannot be written.
    """
    parser = VerbParser(prog="ovseg report", description=__doc__)
    parser.add_argument(
        "folder", type=local_path, help="a dataset, or what a quickstart has written"
    )
    parser.add_argument("--out", type=Path, help="HTML file (report.html in the dataset)")
    parser.add_argument(
        "--samples", type=int, default=300, help="shown, and as many rejected ones (300)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of drawing samples (0)")
    parser.add_argument(
        "--hashes", type=int, default=20_000, help="images compared for near duplicates (20,000)"
    )
    args = parser.parse_args(argv)
    if (args.folder / "quickstart.json").is_file():
        if args.out is not None:
            raise ValueError(f"--out is for datasets: the report of {args.folder} lies in it")
        from ovseg.quickstart_report import make  # imports models, which a dataset does not need

        make(args.folder)
        return 0
    for name in ("samples", "seed", "hashes"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name} must be >= 0, got {getattr(args, name)}")
    out = args.out or args.folder / "report.html"
    if args.folder.is_dir():
        check_page(out)
    page = render(report_of(args.folder, args.samples, args.seed, args.hashes))
    with _writing(out):
        write_text(out, page)
    print(out)
    return 0


def check_page(out: Path) -> None:
    """Refuse a place where no page can be written; reading the dataset takes long.

    A folder is made for it beside others, but neither a chain of folders nor one at the root of the
    disk: they would come of a misspelt path.

    Raises:
        OSError: If it is such a place.
    """
    folder = out.absolute().parent
    with _writing(out):
        if out.exists() and not out.is_file():
            raise IsADirectoryError("what is there is no file")
        if not folder.exists() and folder.parent != Path(folder.anchor):
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(f"there is no folder {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"you may not write in {folder}")
        with suppress(FileNotFoundError):
            os.lstat(folder / partial_of(out).name)  # fails for a name that is too long


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Put what the system says of a page that cannot be written on one line."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write {out} ({error.strerror or error}): give another --out"
        ) from None


def report_of(folder: Path, samples: int, seed: int, hashes: int) -> Report:
    """Read what the page of a dataset shows.

    Args:
        folder: Of the dataset; unfinished ones are read as far as they are.
        samples: Most kept samples in the gallery, and most rejected ones that were kept apart.
        seed: Of drawing them.
        hashes: Most kept images that are compared.

    Raises:
        FileNotFoundError: If there is no dataset, or no finished shard.
        ValueError: If a shard is damaged.
    """
    contents = Contents(folder)
    random = np.random.default_rng(seed)
    kept, rejected = contents.places[True], contents.places[False]
    shown = [*_draw(kept, samples, random), *_draw(rejected, samples, random)]
    compared = _draw(kept, hashes, random)
    with tqdm(compared, desc="hashes") as places:
        hashed = [difference_hash(place.picture("image.png")) for place in places]
    found = near_duplicates(np.array(hashed, dtype=np.uint64), TWINS)
    with tqdm(shown, desc="images") as places:
        cards = [_card(contents, place) for place in places]
    random.shuffle(cards)
    trained_on = contents.facts["annotator"].get("trained_on")
    unseen = {
        key
        for key, numbers in contents.kept.classes.items()
        if trained_on is not None and numbers.class_id not in trained_on
    }
    return Report(
        title=folder.resolve().name,
        about=about(contents.facts, contents.keys, contents.shards),
        numbers=contents.facts.get("yield") or contents.total.describe(contents.keys),
        kept=contents.kept,
        rejected=contents.rejected,
        unseen=unseen,
        hashed=len(compared),
        duplicates=found,
        examples=[
            (_card(contents, compared[one]), _card(contents, compared[other]), bits)
            for one, other, bits in found.examples
        ],
        cards=cards,
    )


def _described(folder: Path) -> tuple[dict, list[str], int]:
    """Return what is known of a dataset, its finished shards, and how many it takes."""
    if (folder / DATASET).is_file():
        manifest = read_manifest(folder)
        return manifest, list(manifest["shards"]), len(manifest["shards"])
    if not (folder / REQUEST).is_file():
        raise FileNotFoundError(
            f"no {DATASET}, {REQUEST} or quickstart.json in {folder}: give the folder of a dataset "
            "or of a quickstart"
        )
    request = read_request(folder, "format", "vocabulary", "backbone", "annotator")
    config, planned = request["config"], plan_shards(folder, request["config"]).shards
    done = sorted(n for n in done_shards(folder, config) if n < planned)
    facts = {**config, "environment": request["environment"], "config_digest": digest_of(config)}
    return facts, [shard_name(number) for number in done], planned


def _draw(places: list[Place], count: int, random: np.random.Generator) -> list[Place]:
    """Return some places in the order in which they lie."""
    drawn = random.permutation(len(places))[:count]
    return [places[position] for position in sorted(drawn)]


def _card(contents: Contents, place: Place) -> Card:
    record = place.record()
    entities = record.request.entities
    return Card(
        title=f"{place.shard.relative_to(contents.folder)} {record.request.index:08d}",
        prompt=record.request.prompt,
        keys=[contents.key_of(entity) for entity in entities],
        class_ids=[entity.class_id for entity in entities],
        facts=record.facts,
        verdict=record.verdict,
        image=thumbnail(place.picture("image.png")),
        layer=layer(place.picture("mask.png")),
    )
