"""Labelled photographs brought into the backbone: its features of pictures that it did not make."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ovseg.backbones.base import DiffusionBackbone
from ovseg.data.base import Stream, WritableStream
from ovseg.data.prompts import fill, sample_seed
from ovseg.quality import Filter
from ovseg.structures import IGNORE, Annotation, Batch, Request, entity_targets
from ovseg.vocabulary import Vocabulary


class PhotographStream(WritableStream):
    """Images with true masks, encoded, and noised or inverted to the tapped steps.

    A grounding module can be trained on them, at once or after `predict` has written them as
    shards: every class in a label map is an entity, with its true mask. Inversion is the route of
    Li et al.'s supplement (arXiv 2301.05221); see the backbones' ``inversion_steps``.

    Args:
        images: Gives images of the backbone's size, and labels.
        template: The prompt, with the place ``{objects}`` for the names of the classes in it.
        seed: Seed of the noise.
        shard_size: Samples per shard when the stream is written, before any are rejected.
        filter: Which samples are kept when the stream is written.

    Raises:
        ValueError: If shard_size is not positive, or the template has no place for the names.
    """

    def __init__(
        self,
        images: Stream,
        template: str = "a photo of {objects}",
        seed: int = 0,
        shard_size: int = 128,
        filter: Filter | None = None,
    ) -> None:
        if shard_size < 1 or template.count("{objects}") != 1:
            raise ValueError(
                f"shard_size must be >= 1 and the template hold {{objects}} once, got {shard_size} "
                f"and {template!r}"
            )
        self.images, self.template, self.fresh = images, template, images.fresh
        self.seed, self.shard_size, self.filter = seed, shard_size, filter

    def bind(self, vocabulary: Vocabulary) -> None:
        """Bind the images to the classes."""
        super().bind(vocabulary)
        self.images.bind(vocabulary)

    def check(self, backbone: DiffusionBackbone | None) -> None:
        """Check that there is a backbone.

        Raises:
            ValueError: If not.
        """
        if backbone is None:
            raise ValueError("photographs are encoded by a backbone: set data.backbone")

    def describe(self) -> dict:
        """Return JSON-ready facts that, with the backbone's, decide every sample."""
        taught = sorted(self.taught_classes())
        return {
            "prompts": {"template": self.template},
            "annotator": {
                "source": "the images' own masks",
                "images": self.images.describe(),
                "requested_classes": taught,
                "trained_on": taught,
            },
            "real_images": True,
            "practices": sorted(self.practices()),
            "size": len(self),
            "seed": self.seed,
            "shard_size": self.shard_size,
        }

    def taught_classes(self) -> set[int]:
        """Return the classes whose true masks are used."""
        return self.images.taught_classes()

    def practices(self) -> set[str]:
        """Return what is done to the images."""
        return self.images.practices()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        """Read images and labels, and name what they show."""
        if not len(positions):
            return Batch(torch.zeros(0, dtype=torch.long))
        batch = self.images.complete(self.images[positions], None)
        requests = []
        for position, labels in zip(positions, batch.labels, strict=True):
            ids = [i for i in labels.unique().tolist() if i not in (0, IGNORE)]
            prompt, entities = fill(self.template, ids, self.vocabulary)
            noise = sample_seed(self.seed, int(position) % len(self))  # an image has its own
            requests.append(Request(int(position), noise, prompt.strip(), entities))
        return batch.replace(requests=requests, position=self.place(positions))

    def complete(self, batch: Batch, backbone: DiffusionBackbone | None) -> Batch:
        """Encode the images and read the backbone's features of them.

        Raises:
            ValueError: If the images do not have the backbone's size.
        """
        if not batch.requests:
            return batch
        latents = backbone.encode_image(batch.images, batch.requests)
        timesteps = backbone.timesteps.to(latents.device)
        entities = backbone.entities(batch.requests)
        masks, _ = entity_targets(batch.labels, entities.class_ids)
        found = entities.valid
        return batch.replace(
            found=found,
            latents=latents,
            timesteps=timesteps,
            entities=entities,
            features=backbone.features(latents, timesteps, batch.requests),
            annotation=Annotation(masks * found[..., None, None], found.float(), found),
        )
