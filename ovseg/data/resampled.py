"""Stored samples sampled once more, for what only a whole sampling shows."""

from __future__ import annotations

from ovseg.backbones.base import DiffusionBackbone
from ovseg.data.found import FoundStream
from ovseg.structures import Batch

COURSE = ("steps", "guidance_scale", "scheduler", "image_size", "both_branches")
"""What must be as it was, for the same images to come out again."""


class ResampledStream(FoundStream):
    """The samples of a dataset in which every name was found, sampled again by the backbone.

    Labels and images are the stored ones. Cross-attention is averaged over all calls of the
    sampling, as DAAM does (arXiv 2210.04885); `FoundStream` has that of the tapped calls alone, in
    a fraction of the time.

    Args:
        path: See `FoundStream`.
        limit: See `FoundStream`.
        cache_dir: See `FoundStream`.
    """

    def __init__(self, path: str, limit: int | None = None, cache_dir: str | None = None) -> None:
        super().__init__(path, limit, cache_dir=cache_dir)

    def check(self, backbone: DiffusionBackbone | None) -> None:
        """Check that this backbone samples as the one that made the dataset.

        Raises:
            ValueError: If there is none, it is another model or samples in another way, or no model
                has made the images.
        """
        if backbone is None:
            raise ValueError(f"{self.source} is to be sampled again: set data.backbone")
        if not self.generated:
            raise ValueError(f"{self.source} holds photographs, which no model samples again")
        super().check(backbone)
        there, here = self.manifest["backbone"], backbone.describe()
        changes = [
            f"{key} {there[key]} there, {here[key]} here"
            for key in COURSE
            if key in there and key in here and there[key] != here[key]
        ]
        if changes:
            raise ValueError(
                f"the samples of {self.source} were made in another way: {'; '.join(changes)}"
            )

    def complete(self, batch: Batch, backbone: DiffusionBackbone | None) -> Batch:
        """Add entities and features by a whole sampling."""
        self.check(backbone)
        sample = backbone.sample(batch.requests)
        return batch.replace(entities=sample.entities, features=sample.features)
