"""``ovseg export``: a written dataset in the format of another library.

The export is made in a folder beside the wanted one, and renamed when it is complete. A killed one
starts again.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from ovseg.data.contents import digest_of
from ovseg.data.fetch import local_path
from ovseg.data.json_file import read_json
from ovseg.data.manifest import differences, write_json
from ovseg.data.shards import ShardStream
from ovseg.errors import VerbParser
from ovseg.export.format import TRAIN, VAL, Format, Item, part_of
from ovseg.vocabulary import Vocabulary

FORMATS = {
    "voc": "ovseg.export.voc:VOC",
    "coco": "ovseg.export.coco:COCO",
    "yolo": "ovseg.export.yolo:YOLO",
    "ade": "ovseg.export.ade:ADE",
    "hf": "ovseg.export.hf:HF",
}
RECORD = "export.json"


def main(argv: Sequence[str]) -> None:
    """Export a dataset, unless that is done already, and upload it where that is asked for.

    Raises:
        FileNotFoundError: If there is no complete dataset.
        ValueError: If an argument is wrong, a sample is damaged, or the folder holds other files.
        ImportError: If the format needs a package that is not installed.
        OSError: If the folder cannot be written; nothing is left of the export.
    """
    args = _parse(argv)
    out = args.out.resolve()
    make = load_format(args.format)
    stream = open_dataset(args.dataset, args.vocabulary)
    request = describe(stream, args.format, args.val_share)
    if not is_done(out, request):
        try:
            with building(out) as folder:
                write(stream, make(folder, stream.vocabulary, stream.manifest), request)
        except OSError as error:
            raise OSError(
                f"cannot export to {out} ({error}): nothing is left of it; mend that and run the "
                "same command again"
            ) from error
    counts = _record(out)["samples"]
    print(f"{out}: {args.format}, {counts[TRAIN]} samples to train with, {counts[VAL]} to validate")
    if args.push_to_hub:
        print(push(out, args.push_to_hub))


def load_format(name: str) -> type[Format]:
    """Import the class of a format.

    Raises:
        ImportError: If it needs a package that is not installed; says how to get it.
    """
    module, _, kind = FORMATS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), kind)
    except ModuleNotFoundError as error:
        package = error.name
        raise ImportError(f"--format {name} needs {package}: pip install {package}") from error


def open_dataset(folder: Path, vocabulary: str | None) -> ShardStream:
    """Open a dataset with the vocabulary that it was made with.

    Args:
        folder: What `predict` wrote.
        vocabulary: Name or path of the vocabulary; by default the name that the dataset records.

    Raises:
        FileNotFoundError: If there is no complete dataset.
        ValueError: If the vocabulary is another one, or cannot be found.
    """
    stream = ShardStream(str(folder))
    made_with = stream.manifest["vocabulary"]
    try:
        classes = Vocabulary.load(vocabulary or made_with["name"], made_with["split"])
    except ValueError as error:
        raise ValueError(f"--vocabulary: {error}") from None
    stream.bind(classes)
    return stream


def describe(stream: ShardStream, format_name: str, val_share: float) -> dict:
    """Return what decides the bytes of an export, JSON-ready."""
    vocabulary, manifest = stream.vocabulary, stream.manifest
    return {
        "format": format_name,
        "val_share": val_share,
        "vocabulary": {"name": vocabulary.name, "digest": vocabulary.digest},
        "dataset": {
            "config_digest": manifest["config_digest"],
            "shards_digest": digest_of(manifest["shards"]),
        },
    }


def is_done(out: Path, request: dict) -> bool:
    """Say whether a folder holds this export.

    Raises:
        ValueError: If it holds another one or other files, lacks files, or cannot be replaced.
    """
    if (out / RECORD).is_file():
        there = _record(out)
        if lines := differences({key: there.get(key) for key in request}, request):
            raise ValueError(
                f"{out} holds another export ({'; '.join(lines)}): choose another --out"
            )
        _check_files(out, there.get("files", {}))  # older exports did not count them
        return True
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty and holds no export: choose another --out")
    if out.is_dir() and (out.is_mount() or out.samefile(Path.cwd())):
        raise ValueError(f"{out} cannot be replaced: choose a folder inside of it as --out")
    return False


def _record(out: Path) -> dict:
    """Return `export.json`.

    Raises:
        ValueError: If it is damaged.
    """
    needed = ("format", "val_share", f"samples.{TRAIN}", f"samples.{VAL}")
    return read_json(
        out / RECORD, needed, f"delete {out} and export again, or choose another --out"
    )


def files_of(folder: Path) -> dict[str, int]:
    """Return how many files lie in an export's folder and each one inside, `export.json` aside."""
    counts = {
        Path(place).relative_to(folder).as_posix(): len(set(names) - {RECORD})
        for place, _, names in os.walk(folder)
    }
    return {place: count for place, count in sorted(counts.items()) if count}


def _check_files(out: Path, recorded: dict[str, int]) -> None:
    """Compare the numbers of files with those that were written; more may be there.

    Raises:
        ValueError: If some are missing.
    """
    there = files_of(out)
    lacks = {place: count - there.get(place, 0) for place, count in recorded.items()}
    if short := [f"{n} of {recorded[place]} in {place}" for place, n in lacks.items() if n > 0]:
        raise ValueError(
            f"{out} lacks files of the export ({', '.join(short)}): delete it and export again"
        )


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """Lend an empty folder that becomes ``out`` if all goes well, and is removed if not.

    Raises:
        ValueError: If another process has it.
    """
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)  # the system lets go of it when the process ends
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is writing {out}: let it end") from None
        try:
            _clear(partial)
            yield partial
            os.sync()
            os.replace(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def write(stream: ShardStream, format_: Format, request: dict) -> None:
    """Write all samples, and `export.json` last."""
    counts = Counter({TRAIN: 0, VAL: 0})
    for position in tqdm(range(len(stream)), desc="samples"):
        sample = stream.sample(position)
        key = f"{sample.request.index:08d}"
        part = part_of(key, request["val_share"])
        format_.add(Item(key, part, stream.members(position), sample))
        counts[part] += 1
    facts = {"samples": dict(counts), **format_.finish()}
    classes = ["background", *(c.key for c in stream.vocabulary.classes)]
    facts["files"] = files_of(format_.folder)
    record = {**request, **facts, "classes": classes, "names": list(stream.vocabulary.names)}
    write_json(format_.folder / RECORD, record)


def push(folder: Path, repo: str) -> str:
    """Upload an export to the Hub; a repository that is made for it is private.

    Returns:
        Its address.

    Raises:
        OSError: If the Hub cannot be reached or refuses; the export is kept.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    hub = HfApi()
    try:
        address = hub.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, repo_type="dataset")
    except (HTTPError, OSError) as error:
        raise OSError(
            f"cannot upload to {repo} ({error}): {folder} is kept, the same command uploads it"
        ) from error
    return str(address)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = VerbParser(
        prog="ovseg export", description="A written dataset in the format of another library."
    )
    parser.add_argument("dataset", type=local_path, help="folder that `predict` wrote")
    parser.add_argument("--format", required=True, choices=FORMATS, help="see docs/data_format.md")
    parser.add_argument("--out", type=Path, required=True, help="folder of the export, a new one")
    parser.add_argument(
        "--val-share", type=float, default=0.1, help="share kept for validation, by key (0.1)"
    )
    parser.add_argument("--vocabulary", help="its YAML, if it is not a shipped one")
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload it; with --format hf")
    args = parser.parse_args(argv)
    if not 0 <= args.val_share < 1:
        raise ValueError(f"--val-share must be in [0, 1), got {args.val_share}")
    if args.push_to_hub:
        if args.format != "hf":
            raise ValueError(f"--push-to-hub uploads --format hf, not {args.format}")
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(args.push_to_hub)
    return args


def _clear(folder: Path) -> None:
    """Remove what a killed process has left in a folder."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
