"""Samples generated and annotated at the moment they are needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ovseg.annotators.base import Annotator, practices_of, taught_by
from ovseg.backbones.base import DiffusionBackbone
from ovseg.data.base import UNSEEN_NAMES, WritableStream
from ovseg.data.prompts import Prompts, refuse_undrawable
from ovseg.quality import Filter
from ovseg.structures import Batch, to_label_map
from ovseg.vocabulary import Vocabulary

LOOKED_AT = 20_000
"""Prompts that are tried on a backbone before anything is sampled; a few seconds."""


class LiveStream(WritableStream):
    """A stream of diffusion samples, annotated; `predict` writes to shards what it yields.

    Position i is request i of the prompts: the same (prompts, seed, i) is the same sample, whoever
    asks and in whatever order, up to the last bits that depend on the batch it is made in.

    Args:
        prompts: What is asked of the backbone.
        annotator: Who says which pixels are which entity.
        size: Number of samples, before any are rejected.
        seed: Seed of the prompts and of every sample's own seed.
        threshold: Probability from which a pixel belongs to an entity.
        band: Pixels within this distance of the threshold become ignore.
        shard_size: Samples per shard when the stream is written, before any are rejected.
        filter: Which samples are kept when the stream is written; trained on live, all are.
        quota: Kept samples wanted of each class that the annotator may find and the prompts name.
            Whole shards are made after those of ``size`` until every class has them; None makes
            ``size`` samples.
        limit: The most samples made to meet the quota, rejected ones included.
        fresh: Train on new samples in every epoch; by default an epoch makes the same ones again.
            What is written does not depend on it.

    Raises:
        ValueError: If a number is not positive, or of quota and limit one is missing.
    """

    generated = True

    def __init__(
        self,
        prompts: Prompts,
        annotator: Annotator,
        size: int,
        seed: int = 0,
        threshold: float = 0.5,
        band: float = 0.0,
        shard_size: int = 128,
        filter: Filter | None = None,
        quota: int | None = None,
        limit: int | None = None,
        fresh: bool = False,
    ) -> None:
        if size < 1 or shard_size < 1:
            raise ValueError(f"size and shard_size must be >= 1, got {size} and {shard_size}")
        if (quota is None) != (limit is None) or (quota is not None and quota < 1):
            raise ValueError(
                f"quota >= 1 and limit, the most samples made to meet it, go together, got {quota} "
                f"and {limit}"
            )
        if limit is not None and limit < size:
            raise ValueError(f"limit must be >= size ({size}), got {limit}")
        self.prompts = prompts
        self.annotator = annotator
        self.size = size
        self.seed = seed
        self.threshold = threshold
        self.band = band
        self.shard_size = shard_size
        self.filter = filter
        self.quota = quota
        self.limit = limit
        self.fresh = fresh

    def bind(self, vocabulary: Vocabulary) -> None:
        """Tell the annotator the classes, and fail now if the prompts cannot be made of them."""
        super().bind(vocabulary)
        self.annotator.bind(vocabulary)
        self.prompts.request(0, vocabulary, self.seed)

    def check(self, backbone: DiffusionBackbone | None) -> None:
        """Check that there is a backbone, which takes the prompts and gives the annotator enough.

        The first `LOOKED_AT` prompts, that is, unless they are costly to make.

        Raises:
            ValueError: If not.
        """
        if backbone is None:
            raise ValueError("a live stream generates its samples: set data.backbone")
        self.annotator.check(backbone)
        self.prompts.check(backbone, self.vocabulary)
        if not self.prompts.costly:
            count = min(len(self), LOOKED_AT)
            requests = (self.prompts.request(i, self.vocabulary, self.seed) for i in range(count))
            refuse_undrawable(backbone, requests, f"the first {count} prompts")

    def to(self, device: torch.device) -> None:
        """Move the annotator."""
        self.annotator.to(device)

    def describe(self) -> dict:
        """Return JSON-ready facts that, with the backbone's, decide every sample."""
        return {
            "prompts": self.prompts.describe(),
            "annotator": self.annotator.describe(),
            "size": self.size,
            "seed": self.seed,
            "threshold": self.threshold,
            "band": self.band,
            "shard_size": self.shard_size,
            "quota": self.quota,
            "limit": self.limit,
        }

    def taught_classes(self) -> set[int]:
        """Return the classes that the annotator is asked for and was trained with."""
        asked, trained = taught_by(self.annotator.describe(), self.vocabulary)
        return asked & trained

    def practices(self) -> set[str]:
        """Return what taught the annotator, and whether it is asked for unseen classes.

        These are then prompted.
        """
        facts = self.annotator.describe()
        asked, _ = taught_by(facts, self.vocabulary)
        named = {UNSEEN_NAMES} if asked & set(self.vocabulary.unseen) else set()
        return named | practices_of(facts)

    def __len__(self) -> int:
        return self.size if self.limit is None else self.limit

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        """Return the requests alone; an empty list of positions gives an empty batch."""
        requests = [self.prompts.request(i, self.vocabulary, self.seed) for i in positions]
        indices = torch.tensor(list(positions), dtype=torch.long)
        return Batch(indices, requests, position=self.place(positions))

    def complete(self, batch: Batch, backbone: DiffusionBackbone | None) -> Batch:
        """Sample and annotate.

        Raises:
            ValueError: If the annotator returned masks of another shape.
        """
        if not batch.requests:
            return batch
        sample = backbone.sample(batch.requests)
        entities = sample.entities
        annotation = self.annotator.annotate(sample)
        expected = (*entities.valid.shape, *sample.images.shape[-2:])
        if tuple(annotation.masks.shape) != expected:
            raise ValueError(
                f"{type(self.annotator).__name__} must return masks (B, K, H, W) = {expected}, "
                f"got {tuple(annotation.masks.shape)}"
            )
        found = annotation.found & entities.valid
        labels = to_label_map(
            annotation.masks, entities.class_ids, found, self.threshold, self.band
        )
        return batch.replace(
            images=sample.images,
            labels=labels,
            found=found,
            latents=sample.latents,
            timesteps=sample.timesteps,
            entities=entities,
            features=sample.features,
            annotation=annotation,
        )
