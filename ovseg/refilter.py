"""``ovseg refilter``: another filter or threshold for a dataset, from what is stored of it."""

from __future__ import annotations

import hashlib
import heapq
import io
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch.nn.functional import interpolate
from tqdm import tqdm

from ovseg.data.contents import GONE, digest_of
from ovseg.data.fetch import local_path
from ovseg.data.manifest import DATASET, finish, pending, prepare, read_manifest, read_request
from ovseg.data.shard_file import REJECTED, check_shard, read_samples, shard_name
from ovseg.data.shard_format import Record, decode_npy, encode_png, encode_record
from ovseg.data.shard_writing import Rejected, Shard, telling_where
from ovseg.quality import Filter, label_facts, verdict_of
from ovseg.report.terminal import show_yield
from ovseg.structures import to_label_map


def main(argv: Sequence[str]) -> int:
    """Write a new dataset; a killed one goes on where it was.

    Raises:
        FileNotFoundError: If the dataset is missing or not complete.
        ValueError: If it does not hold what is needed, or an argument is wrong.
        PermissionError: If the new folder cannot be written.
    """
    parser = ArgumentParser(prog="ovseg refilter", description=__doc__, exit_on_error=False)
    parser.add_argument("dataset", type=local_path, help="a complete dataset")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new one")
    parser.add_argument("-c", "--config", action="config", help="YAML of the options below")
    parser.add_argument("--filter", type=Filter | None, default=None, help="which samples are kept")
    parser.add_argument(
        "--threshold", type=float | None, default=None, help="of the label maps (as it was)"
    )
    parser.add_argument("--band", type=float | None, default=None, help="likewise (as it was)")
    parser.add_argument(
        "--rejected", type=Rejected, default="drop", help="keep the rejects' JSON, or all: apart"
    )
    args = parser.instantiate(parser.parse_args(list(argv)))
    refilter(args.dataset, args.out, args.filter, args.threshold, args.band, args.rejected)
    return 0


def refilter(
    source: Path,
    out: Path,
    judge: Filter | None,
    threshold: float | None = None,
    band: float | None = None,
    rejected: Rejected = "drop",
) -> None:
    """Judge the samples of a dataset again, and write them as another one.

    Images, latents and soft masks are copied. Rejected samples that were kept apart come back if
    nothing is wrong with them now; those that were dropped cannot. Those whose file in
    ``rejected/`` is gone count as rejected.

    Args:
        source: Folder of a complete dataset.
        out: Folder of the new one.
        judge: Says what is wrong with an entity; None keeps all that is there.
        threshold: Probability at which a pixel belongs to an entity; None: as it was.
        band: Half-width of the uncertain band; None: as it was.
        rejected: See `ovseg.callbacks.shard_writer.ShardWriter`.

    Raises:
        FileNotFoundError: If the dataset is missing or not complete.
        ValueError: If its facts or soft masks are not stored, a shard is damaged, or ``out`` holds
            another dataset.
    """
    if out.resolve() == source.resolve():
        raise ValueError(f"{out} holds another dataset: give another --out than the dataset")
    manifest = read_manifest(source)
    total = manifest.get("yield")
    if total is None:
        raise ValueError(f"dataset {source} has format 1, without facts: generate it again")
    request = read_request(source, "vocabulary.keys", "soft")
    old = request["config"]
    levels = _changes(source, old, {"threshold": threshold, "band": band})
    gone = _gone(source, manifest)
    config = {
        **old,
        **levels,
        "filter": judge.describe() if judge is not None else None,
        "rejected": rejected if judge is not None or total["rejected"] else None,
        "size": total["kept"] + total["rejected"],
        "quota": None,
        "quota_classes": None,
        "limit": None,
        "source": {
            "dataset": hashlib.sha256((source / DATASET).read_bytes()).hexdigest()[:16],
            "config": digest_of(old),
            **{key: old.get(key) for key in ("filter", "threshold", "band", "source")},
            **({GONE: gone} if gone else {}),
        },
    }
    _try(source, len(manifest["shards"]), judge)
    prepare(out, {**request, "config": config})
    left, lost = pending(out, config), 0
    if levels:
        levels = {key: config[key] for key in ("threshold", "band")}
    done = len(manifest["shards"]) - len(left)
    for number in tqdm(left, desc="shards", initial=done, total=len(manifest["shards"])):
        _check(source, manifest, number)
        path = out / shard_name(number)
        with telling_where(path), Shard(out, number, config["rejected"]) as shard:
            for record, members in _merged(source, number):
                lost += _write(shard, record, members, judge, levels)
    finish(out, config)
    show_yield(str(out), read_manifest(out)["yield"])
    if gone:
        print(f"{sum(gone.values())} rejected samples of {source} are gone and were not judged")
    if lost:
        print(f"{lost} more would be kept, but were dropped from {source}: only `predict` has them")


def _changes(source: Path, old: dict, levels: dict[str, float | None]) -> dict[str, float]:
    """Return which of threshold and band are other ones than the dataset's.

    Raises:
        ValueError: If its label maps cannot be made again.
    """
    levels = {key: new for key, new in levels.items() if new is not None and new != old.get(key)}
    if levels.get("band", 0) < 0 or not 0 <= levels.get("threshold", 0) <= 1:
        raise ValueError(f"threshold must be in [0, 1] and band >= 0, got {levels}")
    if levels and not (old["soft"] and "threshold" in old):
        raise ValueError(
            f"dataset {source} holds no soft masks to make label maps of: leave "
            f"{' and '.join(levels)} out, or write it with ShardWriter's soft: true"
        )
    if levels and "keep_labels" in old:
        raise ValueError(
            f"dataset {source} has pseudo-labels, whose ignored pixels and kept labels soft masks "
            f"do not tell: leave {' and '.join(levels)} out, or `predict` it with others"
        )
    return levels


def _gone(source: Path, manifest: dict) -> dict[str, int]:
    """Return of how many rejected samples the facts are gone, by the shards that lack any."""
    before = (manifest.get("source") or {}).get(GONE, {})
    files = manifest["rejected_shards"].items()
    there = {n: 0 if (source / REJECTED / n).is_file() else facts["samples"] for n, facts in files}
    counts = {name: before.get(name, 0) + there.get(name, 0) for name in manifest["shards"]}
    return {name: count for name, count in counts.items() if count}


def _check(source: Path, manifest: dict, number: int) -> None:
    """Compare a shard, and the file of its rejects if that is there, with what was written.

    Raises:
        ValueError: If one of them is damaged.
    """
    name = shard_name(number)
    check_shard(source / name, manifest["shards"][name]["sha256"])
    rejects = source / REJECTED / name
    if rejects.is_file():
        check_shard(rejects, manifest["rejected_shards"][name]["sha256"])


def _merged(
    source: Path, number: int, only: str | None = None
) -> Iterator[tuple[Record, dict[str, bytes]]]:
    """Yield the samples of a shard, those that were rejected in their places among the others.

    Args:
        source: Folder of the dataset.
        number: Of the shard.
        only: One extension; the other members are not read.
    """
    paths = [source / shard_name(number), source / REJECTED / shard_name(number)]
    parts = [read_samples(path, only=only) for path in paths if path.is_file()]
    return heapq.merge(*parts, key=lambda sample: sample[0].request.index)


def _try(source: Path, shards: int, judge: Filter | None) -> None:
    """Judge the first samples until something was found in one, before anything is written.

    Raises:
        ValueError: If the filter asks for what is not stored.
    """
    if judge is None:
        return
    for record, _ in chain.from_iterable(_merged(source, n, "json") for n in range(shards)):
        verdict_of(record.facts, judge)
        if any(facts.found for facts in record.facts):
            return


def _write(
    shard: Shard,
    record: Record,
    members: dict[str, bytes],
    judge: Filter | None,
    levels: dict[str, float],
) -> bool:
    """Judge a sample again and append it.

    Returns:
        Whether nothing is wrong with it now, but it was dropped.
    """
    dropped = "image.png" not in members
    if levels and not dropped:
        labels = _labels(record, members, **levels)
        pairs = zip(record.request.entities, record.facts, strict=True)
        facts = [one._replace(**label_facts(labels, entity.class_id)) for entity, one in pairs]
        record = record._replace(facts=facts)
        members = {**members, "mask.png": encode_png(labels)}
    verdict = verdict_of(record.facts, judge)
    lost = dropped and not any(verdict)
    if not lost:  # else it is still rejected for what was wrong before
        record = record._replace(verdict=verdict)
    shard.write({**members, **encode_record(record)}, record)
    return lost


def _labels(record: Record, members: dict[str, bytes], threshold: float, band: float) -> np.ndarray:
    """Return the label map ``(H, W)`` uint8 of a sample's soft masks."""
    width, height = Image.open(io.BytesIO(members["image.png"]), formats=("PNG",)).size
    masks = torch.from_numpy(decode_npy(members["soft.npy"])).float()
    if len(masks) and masks.shape[1:] != (height, width):
        masks = interpolate(masks[None], (height, width), mode="bilinear")[0].clamp(0, 1)
    ids = torch.tensor([[entity.class_id for entity in record.request.entities]])
    found = torch.tensor([[facts.found for facts in record.facts]])
    masks = masks[None] if len(masks) else masks.new_zeros(1, 0, height, width)
    return to_label_map(masks, ids, found, threshold, band)[0].to(torch.uint8).numpy()
