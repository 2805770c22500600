"""Images that nobody labelled, labelled by an annotator: pseudo-labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ovseg.annotators.base import Annotator, practices_of, taught_by
from ovseg.backbones.base import DiffusionBackbone
from ovseg.data.base import PSEUDO_LABELS, Stream, WritableStream
from ovseg.quality import Filter
from ovseg.structures import (
    IGNORE,
    Annotation,
    Batch,
    DiffusionSample,
    Entities,
    Entity,
    Request,
    to_label_map,
)
from ovseg.vocabulary import Vocabulary


class PseudoLabelStream(WritableStream):
    """Images labelled with the classes that an annotator finds in them, e.g. a trained segmenter.

    What it writes has no latents: a segmenter is trained on it, not a grounding module.

    Args:
        images: Gives images.
        annotator: Is asked for every class of the vocabulary that it is set to look for.
        threshold: Mask value from which a pixel belongs to a class. Pixels of a class that does not
            count as found (too small, too doubtful) are ignored.
        band: Half-width of the uncertain band, whose pixels are ignored. A segmenter's mask is its
            probability of the class against the strongest other one, so 0.4 beside a threshold of
            0.5 keeps the pixels in which that is over 0.9, and background where it is under 0.1.
        keep_labels: Keep the images' own labels, and label only the pixels that they ignore, e.g.
            those of unseen classes; else their labels are not looked at.
        shard_size: Samples per shard when the stream is written, before any are rejected.
        filter: Which samples are kept when the stream is written.

    Raises:
        ValueError: If shard_size is not positive, or threshold or band is no part of [0, 1].
    """

    def __init__(
        self,
        images: Stream,
        annotator: Annotator,
        threshold: float = 0.5,
        band: float = 0.4,
        keep_labels: bool = False,
        shard_size: int = 128,
        filter: Filter | None = None,
    ) -> None:
        if shard_size < 1:
            raise ValueError(f"shard_size must be >= 1, got {shard_size}")
        if not (0 < threshold < 1 and 0 <= band < 1):
            raise ValueError(
                f"threshold must be in (0, 1) and band in [0, 1), got {threshold} and {band}"
            )
        self.images, self.annotator, self.fresh = images, annotator, images.fresh
        self.threshold, self.band, self.keep_labels = threshold, band, keep_labels
        self.shard_size, self.filter = shard_size, filter

    def bind(self, vocabulary: Vocabulary) -> None:
        """Bind the images and the annotator to the classes."""
        super().bind(vocabulary)
        self.images.bind(vocabulary)
        self.annotator.bind(vocabulary)
        self.classes = tuple(Entity(c.id, c.name) for c in vocabulary.classes)

    def check(self, backbone: DiffusionBackbone | None) -> None:
        """Refuse a backbone, which would have no say in what is written.

        Raises:
            ValueError: If there is one.
        """
        if backbone is not None:
            raise ValueError("pseudo-labels need no backbone: leave data.backbone out")
        self.images.check(None)

    def to(self, device: torch.device) -> None:
        """Move the annotator."""
        self.images.to(device)
        self.annotator.to(device)

    def describe(self) -> dict:
        """Return JSON-ready facts that decide every sample."""
        return {
            "prompts": None,
            "annotator": self._facts(),
            "images": self.images.describe(),
            "size": len(self),
            "seed": None,
            "shard_size": self.shard_size,
            "threshold": self.threshold,
            "band": self.band,
            "keep_labels": self.keep_labels,
            "real_images": not self.images.generated,
            "practices": sorted(self.practices()),
        }

    def taught_classes(self) -> set[int]:
        """Return the classes whose true masks are used, or have taught the annotator."""
        facts = self._facts()
        return set(facts["requested_classes"]) & set(facts["trained_on"])

    def practices(self) -> set[str]:
        """Return what was done to the images, what taught the annotator, and if they are real."""
        done = self.images.practices() | practices_of(self.annotator.describe())
        return done if self.images.generated else done | {PSEUDO_LABELS}

    def _facts(self) -> dict:
        """Return what the annotator says of itself, the classes of kept labels included."""
        facts = self.annotator.describe()
        asked, trained = taught_by(facts, self.vocabulary)
        kept = self.images.taught_classes() if self.keep_labels else set()
        said = {"requested_classes": sorted(asked | kept), "trained_on": sorted(trained | kept)}
        return {**facts, **said}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        """Return the images, and what is known of their labels.

        Raises:
            ValueError: If they are of different sizes: padding is nothing to be labelled.
        """
        if not len(positions):
            return Batch(torch.zeros(0, dtype=torch.long))
        requests = [Request(int(position), 0, "", self.classes) for position in positions]
        batch = self.images.complete(self.images[positions], None)
        whole = torch.tensor(batch.images.shape[-2:])
        if batch.sizes is not None and (batch.sizes != whole).any():
            raise ValueError(
                f"pseudo-labels are given to images of one size, got {batch.sizes.tolist()} in one "
                "batch: bring them to one by `transforms` of their stream"
            )
        indices = torch.as_tensor(list(positions), dtype=torch.long)
        labels = batch.labels if self.keep_labels else torch.full_like(batch.labels, IGNORE)
        return Batch(indices, requests, batch.images, labels, position=self.place(positions))

    def complete(self, batch: Batch, backbone: DiffusionBackbone | None) -> Batch:
        """Annotate, and keep of each image's classes those that were found or are known."""
        if not batch.requests:
            return batch
        images, count = batch.images, len(batch)
        ids = torch.tensor([e.class_id for e in self.classes], device=images.device)
        ids = ids.expand(count, -1)
        entities = Entities(
            images.new_zeros(*ids.shape, 0).float(), ids, torch.ones_like(ids).bool()
        )
        nothing = images.new_zeros(count, 0, 0, 0, 0).float()
        no_times = nothing.new_zeros(0)
        sample = DiffusionSample(batch.requests, images, nothing, no_times, entities)
        annotation = self.annotator.annotate(sample)
        labels = torch.where(batch.labels == IGNORE, self._label_map(annotation, ids), batch.labels)
        annotation = _with_masks_of(batch.labels, annotation, ids)
        annotation, places = _found_only(annotation)
        requests = [
            request._replace(entities=tuple(request.entities[k] for k in row))
            for request, row in zip(batch.requests, places, strict=True)
        ]
        return batch.replace(
            requests=requests,
            labels=labels,
            found=annotation.found,
            latents=nothing,
            timesteps=no_times,
            annotation=annotation,
        )

    def _label_map(self, annotation: Annotation, ids: Tensor) -> Tensor:
        """Return labels ``(B, H, W)``; what looks like a class that was not found is ignored."""
        everything = torch.ones_like(annotation.found)
        labels = to_label_map(annotation.masks, ids, everything, self.threshold, self.band)
        doubtful = torch.zeros(len(ids), IGNORE + 1, dtype=torch.bool, device=ids.device)
        doubtful.scatter_(1, ids, ~annotation.found)
        return labels.masked_fill(doubtful.gather(1, labels.flatten(1)).view_as(labels), IGNORE)


def _with_masks_of(labels: Tensor, annotation: Annotation, ids: Tensor) -> Annotation:
    """Return the annotation with the masks of label maps where these do not ignore."""
    known = (labels != IGNORE)[:, None]
    own = labels[:, None] == ids[..., None, None]
    there = own.flatten(2).any(dim=2)
    return replace(
        annotation,
        masks=torch.where(known, own.to(annotation.masks.dtype), annotation.masks),
        scores=torch.where(there, 1.0, annotation.scores),
        found=annotation.found | there,
    )


def _found_only(annotation: Annotation) -> tuple[Annotation, list[list[int]]]:
    """Return the annotation of what was found, padded to the same K, and its places."""
    places = [row.nonzero()[:, 0].tolist() for row in annotation.found]
    width = max(1, *map(len, places))
    order = annotation.found.int().argsort(dim=1, descending=True, stable=True)[:, :width]

    def cut(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        index = order.view(*order.shape, *[1] * (values.dim() - 2))
        return values.gather(1, index.expand(-1, -1, *values.shape[2:]))

    found = cut(annotation.found)
    masks = cut(annotation.masks) * found[..., None, None]
    facts = map(cut, (annotation.agreement, annotation.clip))
    return Annotation(masks, cut(annotation.scores), found, annotation.instances, *facts), places
