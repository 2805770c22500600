"""Segmentation models of transformers as detectors of the classes that they have labels for.

Mask2Former, MaskFormer, OneFormer and EoMT answer alike: queries, each with a probability of every
label and the logits of a mask. Their image processors read them each in its own way, into hard
masks, some at a size of their own and some without what another instance covers; here all are read
in one way, into soft masks at the size of the image. torchvision is not needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ovseg.annotators.assemble import Instances, channels_of, from_instances, from_regions
from ovseg.annotators.labelled import LabelledAnnotator, resized
from ovseg.structures import Annotation, DiffusionSample

QUERIES = ("mask2former", "maskformer", "oneformer", "eomt", "eomt_dinov3")
"""Types of models that answer by queries."""


class InstanceAnnotator(LabelledAnnotator):
    """Annotate by a model that finds instances: one query, one instance.

    The label of a query is its most probable one. Its score is that label's probability times the
    mean probability of its mask's pixels, as in the processors of Mask2Former and MaskFormer. A
    query whose best label the vocabulary does not have, or was not asked for, is nobody's.

    Args:
        model: A folder, or a Hub id, of Mask2Former, MaskFormer, OneFormer or EoMT.
        revision: Commit, branch or tag on the Hub.
        local_files_only: Never ask the Hub; use what has been downloaded before.
        classes: Which classes of the vocabulary it is asked for: "seen", "unseen" or "all".
        min_score: Smallest score of an instance that counts as found.

    Raises:
        FileNotFoundError: If there is no model.
        ValueError: If it cannot be loaded, or is of another kind.
    """

    task = "instance"

    def __init__(
        self,
        model: str = "facebook/mask2former-swin-large-coco-instance",
        revision: str | None = None,
        local_files_only: bool = False,
        classes: str = "seen",
        min_score: float = 0.5,
    ) -> None:
        super().__init__(model, revision, local_files_only, classes, min_score)

    def _kind(self, model_type: str) -> type:
        from transformers import AutoModelForUniversalSegmentation

        if model_type not in QUERIES:
            raise ValueError(
                f"{self.checkpoint.source!r} is a model of type {model_type}; InstanceAnnotator "
                f"takes {', '.join(QUERIES)}"
            )
        return AutoModelForUniversalSegmentation

    @torch.no_grad()
    def annotate(self, sample: DiffusionSample) -> Annotation:
        """Return masks, scores and instances of the requested classes among the entities."""
        output, seen = self.run(sample.images)
        best = output.class_queries_logits.softmax(dim=-1)[..., :-1].max(dim=-1)
        classes = torch.tensor(self.class_of, device=best.indices.device)[best.indices]
        requested = torch.tensor(self.requested, device=classes.device)
        ids = sample.entities.class_ids.to(classes.device)
        asked = sample.entities.valid.to(classes.device) & torch.isin(ids, requested)
        belongs = (classes[:, :, None] == ids[:, None]) & asked[:, None]  # (B, Q, K)
        size = tuple(sample.images.shape[-2:])
        found = []
        for logits, probability, theirs in zip(
            output.masks_queries_logits, best.values, belongs, strict=True
        ):
            kept = theirs.any(dim=1) & (probability >= self.min_score)
            masks = self.to_image(logits[kept], seen, size).sigmoid()
            scores = probability[kept] * _certainty(masks)
            sure = scores >= self.min_score
            found.append(Instances(masks[sure], scores[sure], theirs[kept][sure]))
        return from_instances(found)


class SemanticAnnotator(LabelledAnnotator):
    """Annotate by a model that gives every pixel to one label.

    The probability of a class is the sum over its labels. Labels that the vocabulary does not have
    compete with the others. The mask of an entity is its probability against the strongest other
    one, at least 0.5 exactly where the model chooses it.

    Args:
        model: A folder, or a Hub id, of Mask2Former, MaskFormer, OneFormer, EoMT, or of a model for
            semantic segmentation such as SegFormer.
        revision: Commit, branch or tag on the Hub.
        local_files_only: Never ask the Hub; use what has been downloaded before.
        classes: Which classes of the vocabulary it is asked for: "seen", "unseen" or "all".
        min_score: Smallest mean probability over its area that counts as found.
        min_area: Smallest area of an entity that counts as found, as a share of the image.

    Raises:
        FileNotFoundError: If there is no model.
        ValueError: If it cannot be loaded, or is of another kind.
    """

    task = "semantic"

    def __init__(
        self,
        model: str = "facebook/mask2former-swin-large-ade-semantic",
        revision: str | None = None,
        local_files_only: bool = False,
        classes: str = "seen",
        min_score: float = 0.5,
        min_area: float = 0.005,
    ) -> None:
        super().__init__(model, revision, local_files_only, classes, min_score)
        if not 0 <= min_area < 1:
            raise ValueError(f"min_area is a share of the image in [0, 1), got {min_area}")
        self.min_area = min_area

    def _kind(self, model_type: str) -> type:
        from transformers import (
            AutoModelForSemanticSegmentation,
            AutoModelForUniversalSegmentation,
        )

        many = model_type in QUERIES
        return AutoModelForUniversalSegmentation if many else AutoModelForSemanticSegmentation

    @torch.no_grad()
    def annotate(self, sample: DiffusionSample) -> Annotation:
        """Return masks and scores of the requested classes among the entities."""
        probabilities, channels = self._merged(self.probabilities(sample.images))
        asked = {class_id: channels[class_id] for class_id in self.requested}
        channel, known = channels_of(sample.entities.class_ids.to(probabilities.device), asked)
        known = known & sample.entities.valid.to(known.device)
        return from_regions(probabilities, channel, known, self.min_area, self.min_score)

    def describe(self) -> dict:
        """Return JSON-ready facts; needs `bind`."""
        return {**super().describe(), "min_area": self.min_area}

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of every label ``(B, N, H, W)`` for images ``(B, 3, H, W)``.

        Of queries it is the sum of label times mask, divided by the sum over labels where that is
        more than 1.
        """
        output, seen = self.run(images)
        size = tuple(images.shape[-2:])
        if self.checkpoint.config.model_type not in QUERIES:
            return resized(output.logits, size).softmax(dim=1)
        labels = output.class_queries_logits.softmax(dim=-1)[..., :-1]
        masks = [self.to_image(m, seen, size).sigmoid() for m in output.masks_queries_logits]
        sums = torch.stack(
            [torch.einsum("qn,qhw->nhw", *pair) for pair in zip(labels, masks, strict=True)]
        )
        return sums / sums.sum(dim=1, keepdim=True).clamp(min=1)

    def _merged(self, probabilities: Tensor) -> tuple[Tensor, dict[int, int]]:
        """Add up the labels of each class; return the sums and ``{class id: channel}``."""
        groups = [class_id or -label for label, class_id in enumerate(self.class_of, start=1)]
        channels = {group: channel for channel, group in enumerate(dict.fromkeys(groups))}
        index = torch.tensor([channels[group] for group in groups], device=probabilities.device)
        sums = probabilities.new_zeros(
            len(probabilities), len(channels), *probabilities.shape[2:]
        ).index_add(1, index, probabilities)
        return sums, channels


def _certainty(masks: Tensor) -> Tensor:
    """Return the mean probability of the pixels of masks ``(n, H, W)`` that reach 0.5."""
    inside = masks >= 0.5
    return (masks * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
