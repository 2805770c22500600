"""The few types that flow between the parts.

Letters in shapes: B = batch, K = entities (named things) per image, C = channels, D = text width,
S = tapped steps, G = guidance branches (1: conditional only; 2: unconditional, conditional).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = 255
"""Label of a pixel that no loss and no metric looks at."""


class Entity(NamedTuple):
    """One named thing of a prompt.

    Attributes:
        class_id: Id in the vocabulary (>= 1), or 0 for a name outside of it.
        name: The words as they stand in the prompt, e.g. "potted plant".
        span: Character span ``[start, end)`` of the name in the prompt; ``(-1, -1)`` if not in it.
    """

    class_id: int
    name: str
    span: tuple[int, int] = (-1, -1)


class Request(NamedTuple):
    """What to generate. Together with a backbone's configuration it determines the sample.

    Attributes:
        index: Position in the stream; names the sample.
        seed: Seed of this sample's own generator.
        prompt: Text prompt.
        entities: The named things, in prompt order.
        negative_prompt: Text of the unconditional branch.
    """

    index: int
    seed: int
    prompt: str
    entities: tuple[Entity, ...] = ()
    negative_prompt: str = ""


class TapSpec(NamedTuple):
    """Channels per guidance branch of a tapped map, or heads of a probe; stride in image pixels.

    Of a probe, ``width`` is that of each head's queries.
    """

    channels: int
    stride: int
    width: int = 0


@dataclass(frozen=True)
class FeatureSpec:
    """What a backbone's features look like; enough to build a grounder without loading weights.

    Attributes:
        taps: ``{tap name: TapSpec}`` in network order.
        steps: S, number of tapped steps.
        branches: G, 1 (conditional only) or 2 (unconditional, conditional).
        probes: ``{layer: TapSpec(heads, stride, width)}`` of the cross-attention layers to probe,
            in network order.
    """

    taps: dict[str, TapSpec]
    steps: int = 1
    branches: int = 1
    probes: dict[str, TapSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("taps", "probes"):
            specs = {name: TapSpec(*spec) for name, spec in getattr(self, key).items()}
            object.__setattr__(self, key, specs)

    def to_dict(self) -> dict:
        """Return a JSON-ready dict; ``FeatureSpec(**d)`` is the inverse."""
        taps = {name: list(tap[:2]) for name, tap in self.taps.items()}
        probes = {name: list(probe) for name, probe in self.probes.items()}
        return {"taps": taps, "steps": self.steps, "branches": self.branches, "probes": probes}


@dataclass
class Probe:
    """A cross-attention layer that can be asked for any name, whether the prompt holds it or not.

    Attributes:
        queries: ``(B, S, heads, d, h, w)`` float: what the layer's pixels looked for, scaled.
        totals: ``(B, S, heads, h, w)`` float: log-sum-exp of their scores of the prompt's tokens.
        keys: ``(heads, d, D)`` float: the layer's map from text to keys.
    """

    queries: Tensor
    totals: Tensor
    keys: Tensor

    def __call__(self, text: Tensor) -> Tensor:
        """Return the log-odds of attending to each name rather than to the prompt.

        Args:
            text: ``(B, K, D)`` embeddings of names.

        Returns:
            ``(B, S, K, heads, h, w)`` float.
        """
        keys = torch.einsum("bkt,ndt->bknd", text, self.keys)
        scores = torch.einsum("bsndhw,bknd->bsknhw", self.queries, keys)
        return scores - self.totals[:, :, None]


@dataclass
class Features:
    """What a grounder may look at.

    Attributes:
        maps: ``{tap: (B, S, G, C, h, w)}`` float.
        attention: ``(B, K, h, w)`` cross-attention map of each entity, float >= 0, or None.
        probes: ``{layer: Probe}``, the layers in network order.
        merged: What a grounder has made of the maps already (`Grounder.read`), or None.
    """

    maps: dict[str, Tensor]
    attention: Tensor | None = None
    probes: dict[str, Probe] = field(default_factory=dict)
    merged: Tensor | None = None


@dataclass
class Entities:
    """The named things of a batch, padded to the same K.

    Attributes:
        text: ``(B, K, D)`` float text embedding of each name.
        class_ids: ``(B, K)`` int64; 0 in padding.
        valid: ``(B, K)`` bool; False in padding.
    """

    text: Tensor
    class_ids: Tensor
    valid: Tensor


@dataclass
class DiffusionSample:
    """Generated images and all that was read on the way.

    Attributes:
        requests: The B requests.
        images: ``(B, 3, H, W)`` uint8 RGB.
        latents: ``(B, S, C, h, w)`` exactly what entered the tapped calls (scaled, one branch).
        timesteps: ``(S,)`` timesteps of the tapped calls.
        entities: Names with their text embeddings.
        features: Features of the tapped calls, as they were during sampling.
    """

    requests: list[Request]
    images: Tensor
    latents: Tensor
    timesteps: Tensor
    entities: Entities
    features: Features | None = None


@dataclass
class Annotation:
    """Which pixels of a sample are which entity.

    Attributes:
        masks: ``(B, K, H, W)`` float in [0, 1]; union of all instances of an entity.
        scores: ``(B, K)`` float in [0, 1].
        found: ``(B, K)`` bool; a prompted entity that was not found carries no loss.
        instances: ``(B, H, W)`` int64 instance ids (0 = none), or None.
        agreement: ``(B, K)`` float in [0, 1], how far a second annotator agrees, or None.
        clip: ``(B, K)`` float in [0, 1], how similar CLIP finds image and name, or None.
    """

    masks: Tensor
    scores: Tensor
    found: Tensor
    instances: Tensor | None = None
    agreement: Tensor | None = None
    clip: Tensor | None = None


class ShardPosition(NamedTuple):
    """Where a batch stands in the dataset being written."""

    shard: int
    first: bool
    last: bool


@dataclass
class Batch:
    """What every stream yields, synthetic or real, live or stored.

    Fields that a stream does not have stay None; a live stream's batch holds requests alone until
    it has been completed on the device.

    Attributes:
        indices: ``(B,)`` int64 positions in the stream.
        requests: The B requests; empty for real images.
        images: ``(B, 3, H, W)`` uint8 RGB.
        labels: ``(B, H, W)`` int64 class ids, 0 background, 255 ignore.
        sizes: ``(B, 2)`` int64 height and width of each image before it was padded at the right and
            at the bottom; None if none was.
        original_sizes: ``(B, 2)`` int64 height and width of each image as it was read, before any
            transform; None if that is not known.
        found: ``(B, K)`` bool: entity was found by the annotator.
        latents: ``(B, S, C, h, w)``, see `DiffusionSample`.
        timesteps: ``(S,)``.
        entities: Names with text embeddings (needs a backbone).
        features: Backbone features (needs a backbone).
        annotation: Soft annotation, while it is live.
        position: Place in the dataset being written.
    """

    indices: Tensor
    requests: list[Request] = field(default_factory=list)
    images: Tensor | None = None
    labels: Tensor | None = None
    sizes: Tensor | None = None
    original_sizes: Tensor | None = None
    found: Tensor | None = None
    latents: Tensor | None = None
    timesteps: Tensor | None = None
    entities: Entities | None = None
    features: Features | None = None
    annotation: Annotation | None = None
    position: ShardPosition | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def replace(self, **changes) -> Batch:
        """Return a copy with some fields changed."""
        return replace(self, **changes)


def to_label_map(
    masks: Tensor, class_ids: Tensor, valid: Tensor, threshold: float = 0.5, band: float = 0.0
) -> Tensor:
    """Turn soft masks into one label map; the only place where that is done.

    Background where every probability is under ``threshold - band``, ignore where the highest one
    lies within ``band`` of the threshold, else the class of the highest (the first of equals).

    Args:
        masks: ``(B, K, H, W)`` float in [0, 1].
        class_ids: ``(B, K)`` int64.
        valid: ``(B, K)`` bool; entities that are padding or were not found are left out.
        threshold: Probability at which a pixel belongs to an entity.
        band: Half-width of the uncertain band, >= 0.

    Returns:
        ``(B, H, W)`` int64, 0 background, 255 ignore.

    Raises:
        ValueError: If masks hold values outside [0, 1] or band is negative.
    """
    if band < 0:
        raise ValueError(f"band must be >= 0, got {band}")
    if masks.shape[1] == 0:
        return torch.zeros(masks.shape[0], *masks.shape[2:], dtype=torch.long, device=masks.device)
    if masks.numel() and not (masks.min() >= 0 and masks.max() <= 1):
        raise ValueError("masks must be probabilities in [0, 1]; apply a sigmoid to logits first")
    best, arg = masks.masked_fill(~valid[..., None, None], -1.0).max(dim=1)
    ids = class_ids[:, :, None, None].expand_as(masks).gather(1, arg[:, None])[:, 0]
    labels = torch.where(best >= threshold, ids, torch.zeros_like(ids))
    if band > 0:
        labels = torch.where((best - threshold).abs() < band, IGNORE, labels)
    return labels


def entity_targets(labels: Tensor, class_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cut one binary target per entity out of label maps.

    Args:
        labels: ``(B, H, W)`` int64 with 255 = ignore.
        class_ids: ``(B, K)`` int64.

    Returns:
        targets ``(B, K, H, W)`` float in {0, 1} (union of all instances of the class), and pixels
        ``(B, 1, H, W)`` bool that count.
    """
    targets = labels[:, None] == class_ids[:, :, None, None]
    return targets.float(), (labels != IGNORE)[:, None]
