"""One sample as members of a WebDataset tar, and back.

``KEY.image.png`` RGB; ``KEY.mask.png`` uint8 class ids, 255 ignore; ``KEY.json`` flat, the same
fields of the same types in every sample; ``KEY.latent.npy`` float32 ``(S, C, h, w)``; optionally
``KEY.soft.npy`` ``(K, h, w)``, float32 at image size, float16 if it is smaller, and
``KEY.instances.png`` uint16. See `docs/data_format.md`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection
from dataclasses import dataclass
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ovseg.quality import EXTRAS, Facts, Filter, facts_of, verdict_of
from ovseg.structures import Batch, Entity, Request

FACTS = {
    "found": "found",
    "scores": "score",
    "area": "area",
    "components": "components",
    "uncertain": "uncertain",
    "border": "border",
    "agreement": "agreement",
    "clip": "clip",
}
"""What a list of ``KEY.json`` holds: ``{field there: attribute of Facts}``, in the order there."""

SINCE_2 = ("area", "components", "uncertain", "border", "verdict")
"""Fields of ``KEY.json`` of which a sample of format 1 has none, any other all."""

LABELLED = ("image.png", "mask.png", "json")
"""Members of a labelled image."""

STORED = (*LABELLED, "latent.npy")
"""Members that every sample has."""

MISSING = -1.0
"""Stored for agreement and CLIP where nobody was asked, so that types stay fixed."""


class Record(NamedTuple):
    """What ``KEY.json`` says of a sample.

    Attributes:
        request: What was asked.
        facts: Of each of its K entities.
        timesteps: S floats: of the tapped calls.
        verdict: What is wrong with each entity, "" if nothing; not kept if anything is.
    """

    request: Request
    facts: list[Facts]
    timesteps: list[float]
    verdict: list[str]

    @property
    def kept(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.verdict)


@dataclass
class StoredSample:
    """One sample as arrays.

    Attributes:
        record: What was asked, and what is known of each entity.
        image: ``(H, W, 3)`` uint8 RGB.
        mask: ``(H, W)`` uint8 class ids, 255 ignore.
        latent: ``(S, C, h, w)`` float32: what entered the tapped calls; None if it was not read.
        soft: ``(K, h, w)`` masks, float32 at image size, float16 if smaller; or None.
        instances: ``(H, W)`` uint16 instance ids, or None.
    """

    record: Record
    image: np.ndarray
    mask: np.ndarray
    latent: np.ndarray | None = None
    soft: np.ndarray | None = None
    instances: np.ndarray | None = None

    @property
    def request(self) -> Request:
        """What was asked."""
        return self.record.request

    @property
    def found(self) -> list[bool]:
        """Which entities the annotator found."""
        return [facts.found for facts in self.record.facts]


def samples_of(
    batch: Batch, soft_size: tuple[int, int] | None = None, judge: Filter | None = None
) -> list[StoredSample]:
    """Cut a completed batch into samples.

    Args:
        batch: With images, labels, found, latents, timesteps and annotation.
        soft_size: Size of the soft masks, or None to leave them out.
        judge: Says what is wrong with an entity.
    """
    annotation = batch.annotation
    images = batch.images.permute(0, 2, 3, 1).cpu().numpy()
    labels = batch.labels.to(torch.uint8).cpu().numpy()
    latents = batch.latents.float().cpu().numpy()
    timesteps = [float(t) for t in batch.timesteps]
    soft = _soft(annotation.masks, soft_size) if soft_size is not None else None
    instances = None
    if annotation.instances is not None:
        instances = annotation.instances.cpu().numpy().astype(np.uint16)
    return [
        StoredSample(
            record=Record(request, facts, timesteps, verdict_of(facts, judge)),
            image=images[row],
            mask=labels[row],
            latent=latents[row],
            soft=None if soft is None else soft[row, : len(request.entities)],
            instances=None if instances is None else instances[row],
        )
        for row, (request, facts) in enumerate(zip(batch.requests, facts_of(batch), strict=True))
    ]


def _soft(masks: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Return masks ``(B, K, *size)``; those of full size lose nothing."""
    if masks.shape[-2:] == size:
        return masks.float().cpu().numpy()
    return adaptive_avg_pool2d(masks.float(), size).half().cpu().numpy()


def encode_record(record: Record) -> dict[str, str | bytes]:
    """Return the members ``__key__`` and ``json``."""
    request = record.request
    facts = {
        "index": request.index,
        "seed": request.seed,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "names": [entity.name for entity in request.entities],
        "class_ids": [entity.class_id for entity in request.entities],
        "starts": [entity.span[0] for entity in request.entities],
        "ends": [entity.span[1] for entity in request.entities],
        **{key: [getattr(one, name) for one in record.facts] for key, name in FACTS.items()},
        "verdict": record.verdict,
        "timesteps": record.timesteps,
    }
    for name in EXTRAS:
        facts[name] = [MISSING if value is None else value for value in facts[name]]
    key = f"{request.index:08d}"
    return {"__key__": key, "json": json.dumps(facts, ensure_ascii=False).encode()}


def encode_sample(sample: StoredSample) -> dict[str, str | bytes]:
    """Return what `webdataset.TarWriter(encoder=False)` writes; the same bytes every time."""
    members = {
        **encode_record(sample.record),
        "image.png": encode_png(sample.image),
        "mask.png": encode_png(sample.mask),
        "latent.npy": _npy(sample.latent),
    }
    if sample.soft is not None:
        members["soft.npy"] = _npy(sample.soft)
    if sample.instances is not None:
        members["instances.png"] = encode_png(sample.instances)
    return members


def encode_png(array: np.ndarray) -> bytes:
    """Return an image, a label map or instance ids as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_sample(members: dict[str, bytes], needed: Collection[str] = STORED) -> StoredSample:
    """Return the sample of these members; nothing is unpickled.

    Args:
        members: ``{extension: bytes}``.
        needed: Extensions that must be there.

    Raises:
        ValueError: If a member is missing or damaged, or image and mask differ in size.
    """
    if missing := set(needed) - members.keys():
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    try:
        record = decode_record(members["json"])
        image = _pixels(members["image.png"])
        mask = _pixels(members["mask.png"])
        arrays = (members.get(name) for name in ("latent.npy", "soft.npy"))
        latent, soft = (None if array is None else decode_npy(array) for array in arrays)
        instances = members.get("instances.png")
        if instances is not None:
            instances = _pixels(instances).astype(np.uint16)
    except (OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError) as error:
        raise ValueError(f"it cannot be read ({error})") from error  # SyntaxError: broken PNG
    if image.dtype != np.uint8 or image.shape[2:] != (3,):
        raise ValueError(f"its image is {image.dtype} of {image.shape}, not uint8 (H, W, 3)")
    if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
        raise ValueError(
            f"its mask is {mask.dtype} of {mask.shape}, its image has {image.shape[:2]} pixels"
        )
    return StoredSample(record, image, mask, latent, soft, instances)


def decode_record(data: bytes) -> Record:
    """Return what a sample's JSON says.

    Raises:
        ValueError: If it is no JSON, or not the fields of a sample.
    """
    try:
        return _record(json.loads(data))
    except KeyError as error:
        raise ValueError(f"it has no field {error}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"its fields are not those of a sample ({error})") from None


def _record(stored: dict) -> Record:
    for name in ("found", "scores", *(SINCE_2 if stored.keys() & set(SINCE_2) else ())):
        stored[name]  # the others are read below
    names = stored["names"]
    spans = zip(stored["starts"], stored["ends"], strict=True)
    fields = zip(stored["class_ids"], names, spans, strict=True)
    entities = tuple(Entity(*entity) for entity in fields)
    request = Request(
        stored["index"], stored["seed"], stored["prompt"], entities, stored["negative_prompt"]
    )
    absent = [None] * len(names)  # from a dataset of format 1
    columns = {name: stored.get(key, absent) for key, name in FACTS.items()}
    for name in EXTRAS:
        columns[name] = [None if value == MISSING else value for value in columns[name]]
    facts = [Facts._make(row) for row in zip(names, *columns.values(), strict=True)]
    verdict = stored.get("verdict", [""] * len(names))
    return Record(request, facts, stored["timesteps"], verdict)


def _pixels(data: bytes) -> np.ndarray:
    """Decode a PNG, without `Image.open`'s search for a format, a tenth of a small one's time."""
    return np.array(PngImageFile(io.BytesIO(data)))


def decode_npy(data: bytes) -> np.ndarray:
    """Return an array.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (SyntaxError, TokenError) as error:  # of a header that is no Python, by Python's version
        raise ValueError(f"its array has a broken header ({error})") from None


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
