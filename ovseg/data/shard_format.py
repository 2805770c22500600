"""One sample as members of a WebDataset tar, and back.

``KEY.image.png`` RGB; ``KEY.mask.png`` uint8 class ids, 255 ignore; ``KEY.json`` flat, the same
fields of the same types in every sample; ``KEY.latent.npy`` float32 ``(S, C, h, w)``; optionally
``KEY.soft.npy`` float16 ``(K, h, w)`` and ``KEY.instances.png`` uint16. See `docs/data_format.md`.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from ovseg.structures import Batch, Entity, Request


@dataclass
class StoredSample:
    """One sample as arrays.

    Attributes:
        request: What was asked.
        image: ``(H, W, 3)`` uint8 RGB.
        mask: ``(H, W)`` uint8 class ids, 255 ignore.
        latent: ``(S, C, h, w)`` float32: what entered the tapped calls.
        timesteps: S floats.
        found: K flags.
        scores: K floats in [0, 1].
        soft: ``(K, h, w)`` float16 masks, or None.
        instances: ``(H, W)`` uint16 instance ids, or None.
    """

    request: Request
    image: np.ndarray
    mask: np.ndarray
    latent: np.ndarray
    timesteps: list[float]
    found: list[bool]
    scores: list[float]
    soft: np.ndarray | None = None
    instances: np.ndarray | None = None


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:06d}.tar"


def samples_of(batch: Batch, soft_size: tuple[int, int] | None = None) -> list[StoredSample]:
    """Cut a completed batch into samples.

    Args:
        batch: With images, labels, found, latents, timesteps and annotation.
        soft_size: Size of the soft masks, or None to leave them out.
    """
    annotation = batch.annotation
    images = batch.images.permute(0, 2, 3, 1).cpu().numpy()
    labels = batch.labels.to(torch.uint8).cpu().numpy()
    latents = batch.latents.float().cpu().numpy()
    timesteps = [float(t) for t in batch.timesteps]
    soft = instances = None
    if soft_size is not None:
        soft = adaptive_avg_pool2d(annotation.masks.float(), soft_size).half().cpu().numpy()
    if annotation.instances is not None:
        instances = annotation.instances.cpu().numpy().astype(np.uint16)
    return [
        StoredSample(
            request=request,
            image=images[row],
            mask=labels[row],
            latent=latents[row],
            timesteps=timesteps,
            found=batch.found[row, : len(request.entities)].tolist(),
            scores=annotation.scores[row, : len(request.entities)].tolist(),
            soft=None if soft is None else soft[row, : len(request.entities)],
            instances=None if instances is None else instances[row],
        )
        for row, request in enumerate(batch.requests)
    ]


def encode_sample(sample: StoredSample) -> dict[str, str | bytes]:
    """Return what `webdataset.TarWriter(encoder=False)` writes; the same bytes every time."""
    request = sample.request
    facts = {
        "index": request.index,
        "seed": request.seed,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "names": [entity.name for entity in request.entities],
        "class_ids": [entity.class_id for entity in request.entities],
        "starts": [entity.span[0] for entity in request.entities],
        "ends": [entity.span[1] for entity in request.entities],
        "found": sample.found,
        "scores": [round(score, 6) for score in sample.scores],
        "timesteps": sample.timesteps,
    }
    members: dict[str, str | bytes] = {
        "__key__": f"{request.index:08d}",
        "image.png": _png(sample.image),
        "mask.png": _png(sample.mask),
        "json": json.dumps(facts, ensure_ascii=False).encode(),
        "latent.npy": _npy(sample.latent),
    }
    if sample.soft is not None:
        members["soft.npy"] = _npy(sample.soft)
    if sample.instances is not None:
        members["instances.png"] = _png(sample.instances)
    return members


def decode_sample(members: dict[str, bytes]) -> StoredSample:
    """Return the sample of these members; nothing is unpickled.

    Raises:
        ValueError: If a member is missing or damaged, or image and mask differ in size.
    """
    missing = {"image.png", "mask.png", "json", "latent.npy"} - members.keys()
    if missing:
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    try:
        facts = decode_facts(members["json"])
        image = np.array(_open(members["image.png"]))
        mask = np.array(_open(members["mask.png"]))
        latent = np.load(io.BytesIO(members["latent.npy"]), allow_pickle=False)
        soft, instances = members.get("soft.npy"), members.get("instances.png")
        if soft is not None:
            soft = np.load(io.BytesIO(soft), allow_pickle=False)
        if instances is not None:
            instances = np.array(_open(instances)).astype(np.uint16)
    except (OSError, KeyError, TypeError, EOFError, SyntaxError) as error:  # the last: broken PNG
        raise ValueError(f"it cannot be read ({error})") from error
    if image.dtype != np.uint8 or image.shape[2:] != (3,):
        raise ValueError(f"its image is {image.dtype} of {image.shape}, not uint8 (H, W, 3)")
    if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
        raise ValueError(
            f"its mask is {mask.dtype} of {mask.shape}, its image has {image.shape[:2]} pixels"
        )
    request, found, scores, timesteps = facts
    return StoredSample(request, image, mask, latent, timesteps, found, scores, soft, instances)


def decode_facts(data: bytes) -> tuple[Request, list[bool], list[float], list[float]]:
    """Return request, found, scores and timesteps of a sample's JSON."""
    facts = json.loads(data)
    spans = zip(facts["starts"], facts["ends"], strict=True)
    entities = tuple(map(Entity, facts["class_ids"], facts["names"], spans))
    request = Request(
        facts["index"], facts["seed"], facts["prompt"], entities, facts["negative_prompt"]
    )
    return request, facts["found"], facts["scores"], facts["timesteps"]


def index_shard(path: Path, samples: int | None = None) -> list[dict[str, tuple[int, int]]]:
    """Return ``{extension: (offset, size)}`` of every sample of a shard, in the order of the tar.

    Args:
        path: The tar.
        samples: Number of samples it must have.

    Raises:
        ValueError: If it is empty, cut short, no tar, or has another number of samples.
    """
    damage = "is damaged: delete it and run `predict` again, which makes only what is missing"
    table: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        length = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                table.setdefault(key, {})[extension] = (member.offset_data, member.size)
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
    except FileNotFoundError:
        raise ValueError(f"shard {path} is missing: run `predict` again") from None
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"shard {path} {damage} ({error})") from None
    if not table or (samples is not None and len(table) != samples):
        raise ValueError(f"shard {path} {damage} ({len(table)} samples, not {samples or 'any'})")
    return list(table.values())


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=("PNG",))


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
