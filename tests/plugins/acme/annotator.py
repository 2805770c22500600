"""An annotator that finds the toy backbone's colours, as an oracle would."""

from __future__ import annotations

import torch

from acme.backbone import color_of
from ovseg.annotators.base import Annotator
from ovseg.structures import Annotation, DiffusionSample
from ovseg.vocabulary import Vocabulary


class ColorAnnotator(Annotator):
    """Mark the pixels that have an entity's colour.

    Args:
        classes: "seen", "unseen" or "all": the classes that it is asked for.
        instances: Whether to number the objects too.
    """

    def __init__(self, classes: str = "all", instances: bool = False) -> None:
        super().__init__()
        self.classes, self.with_instances = classes, instances

    def bind(self, vocabulary: Vocabulary) -> None:
        super().bind(vocabulary)
        self.requested = vocabulary.select(self.classes)

    @torch.no_grad()
    def annotate(self, sample: DiffusionSample) -> Annotation:
        ids, images = sample.entities.class_ids, sample.images
        colors = torch.tensor([[color_of(i) for i in row] for row in ids.tolist()])
        colors = colors.to(images)[..., None, None]
        asked = torch.isin(ids, torch.tensor(self.requested).to(ids)) & sample.entities.valid
        masks = (images[:, None] == colors).all(dim=2) & asked[..., None, None]
        found = masks.flatten(2).any(dim=2)
        numbers = torch.arange(1, ids.shape[1] + 1).to(ids)[None, :, None, None]
        instances = (masks * numbers).amax(dim=1) if self.with_instances else None
        return Annotation(masks.float(), found.float(), found, instances)

    def describe(self) -> dict:
        return {
            "requested_classes": list(self.requested),
            "trained_on": [],
            "source": "acme colours",
            "digest": f"colours-{self.classes}",
        }
