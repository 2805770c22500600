"""How good an annotated sample is, decided by facts about each of its entities.

The facts are stored with a sample, so that another `Filter` can judge it again without making it
again (`ovseg refilter`).
"""

from __future__ import annotations

import operator
import re
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ovseg.structures import Batch

LIKELY, SURE = 0.25, 0.75
"""A pixel of a soft mask belongs to its entity perhaps above the first, surely from the second."""

DIGITS = 6
"""Decimals of a fact, as it is judged and stored."""


class Facts(NamedTuple):
    """What is known of one entity of a sample; in a dataset of format 1 only the first three.

    Attributes:
        name: How the prompt calls it.
        found: Whether the annotator found it.
        score: The annotator's, in [0, 1].
        area: Share of the image that its label covers.
        components: Connected components of its label; pixels that share a corner are connected.
        uncertain: Share of the pixels above 0.25 in its soft mask that are under 0.75.
        border: Whether its label touches the border of the image.
        agreement: How far a second annotator agrees, in [0, 1], or None if none was asked.
        clip: How similar CLIP finds image and name, in [0, 1], or None if it was not asked.
    """

    name: str
    found: bool
    score: float
    area: float | None = None
    components: int | None = None
    uncertain: float | None = None
    border: bool | None = None
    agreement: float | None = None
    clip: float | None = None


EXTRAS = ("agreement", "clip")
"""Facts that are None where nobody was asked."""


def facts_of(batch: Batch) -> list[list[Facts]]:
    """Return the facts of the entities of every sample of a completed batch."""
    annotation, labels = batch.annotation, batch.labels.cpu().numpy()
    scores, uncertain = _rounded(annotation.scores), _rounded(uncertain_share(annotation.masks))
    found = batch.found.tolist()
    extras = {name: getattr(annotation, name) for name in EXTRAS}
    asked = {name: _rounded(values) for name, values in extras.items() if values is not None}
    return [
        [
            Facts(
                name=entity.name,
                found=found[row][column],
                score=scores[row][column],
                uncertain=uncertain[row][column],
                **{name: values[row][column] for name, values in asked.items()},
                **label_facts(labels[row], entity.class_id),
            )
            for column, entity in enumerate(request.entities)
        ]
        for row, request in enumerate(batch.requests)
    ]


def label_facts(labels: np.ndarray, class_id: int) -> dict[str, float | int | bool]:
    """Return area, components and border of a class in a label map.

    Args:
        labels: ``(H, W)`` class ids.
        class_id: The class; a name outside of the vocabulary (0) has no label.
    """
    import cv2  # needs libGL, which whoever only reads datasets may lack

    mask = (labels == class_id) & (class_id > 0)
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return {
        "area": round(float(mask.mean()), DIGITS),
        "components": cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1,
        "border": bool(any(edge.any() for edge in edges)),
    }


def uncertain_share(masks: Tensor) -> Tensor:
    """Return which share of the likely pixels of soft masks is not sure.

    Args:
        masks: ``(B, K, H, W)`` float in [0, 1].

    Returns:
        ``(B, K)`` float in [0, 1]; 0 where no pixel is likely.
    """
    likely = masks > LIKELY
    unsure = likely & (masks < SURE)
    return unsure.sum((2, 3)) / likely.sum((2, 3)).clamp(min=1)


class Filter(ABC):
    """Say what is wrong with the entities of a sample; a sample is kept if nothing is."""

    @abstractmethod
    def judge(self, facts: Facts) -> str:
        """Return what is wrong with an entity, "" if nothing is.

        Several reasons are joined by ", "; one such as "area 0.002 < 0.01" is counted, over a
        dataset, as "area < 0.01".
        """

    def describe(self) -> dict:
        """Return JSON-ready facts for `dataset.json` that tell this filter from others."""
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", **vars(self)}


class QualityFilter(Filter):
    """Bounds of the facts; None is no bound.

    All but `must_be_found` are asked of entities that were found.

    Args:
        min_score: Smallest score.
        min_area: Smallest share of the image.
        max_area: Largest share of the image.
        max_components: Largest number of connected components.
        max_uncertain: Largest share of likely pixels that are not sure.
        min_agreement: Smallest agreement of two annotators.
        no_border: Whether the label must stay clear of the image's border.
        must_be_found: Whether every entity must be found.
        min_clip: Smallest similarity of image and name; needs a `ClipScoreAnnotator`.

    Raises:
        ValueError: If a share lies outside of [0, 1], or max_components is not positive.
    """

    def __init__(
        self,
        min_score: float | None = None,
        min_area: float | None = None,
        max_area: float | None = None,
        max_components: int | None = None,
        max_uncertain: float | None = None,
        min_agreement: float | None = None,
        no_border: bool = False,
        must_be_found: bool = False,
        min_clip: float | None = None,
    ) -> None:
        self.min_score = min_score
        self.min_area = min_area
        self.max_area = max_area
        self.max_components = max_components
        self.max_uncertain = max_uncertain
        self.min_agreement = min_agreement
        self.no_border = no_border
        self.must_be_found = must_be_found
        self.min_clip = min_clip
        for name, bound in vars(self).items():
            if name == "max_components":
                if bound is not None and bound < 1:
                    raise ValueError(f"max_components must be >= 1 or null, got {bound}")
            elif bound is not None and not 0 <= bound <= 1:
                raise ValueError(f"{name} must be in [0, 1] or null, got {bound}")

    def judge(self, facts: Facts) -> str:
        """Return every bound that an entity breaks.

        Raises:
            ValueError: If agreement or CLIP is asked for and was not when the sample was made.
        """
        if not facts.found:
            return "not found" if self.must_be_found else ""
        if self.min_agreement is not None and facts.agreement is None:
            raise ValueError(
                "min_agreement needs an annotator that compares two; this one's samples have no "
                "agreement: leave it out"
            )
        if self.min_clip is not None and facts.clip is None:
            raise ValueError(
                "min_clip needs a ClipScoreAnnotator; these samples have none: leave it out"
            )
        bounds = (
            (facts.score, "score", "<", self.min_score),
            (facts.area, "area", "<", self.min_area),
            (facts.area, "area", ">", self.max_area),
            (facts.components, "components", ">", self.max_components),
            (facts.uncertain, "uncertain", ">", self.max_uncertain),
            (facts.agreement, "agreement", "<", self.min_agreement),
            (facts.clip, "clip", "<", self.min_clip),
        )
        reasons = [
            f"{name} {value:g} {sign} {bound:g}"
            for value, name, sign, bound in bounds
            if bound is not None and _BROKEN[sign](value, bound)
        ]
        return ", ".join(reasons + ["at the border"] * (self.no_border and facts.border))


_BROKEN = {"<": operator.lt, ">": operator.gt}


def verdict_of(facts: list[Facts], judge: Filter | None) -> list[str]:
    """Return what is wrong with each entity of a sample; without a filter nothing is."""
    return [judge.judge(one) if judge is not None else "" for one in facts]


def kinds_of(reasons: str) -> list[str]:
    """Return an entity's reasons without the values that broke them."""
    return [re.sub(r" \S+(?= [<>] )", "", reason) for reason in reasons.split(", ") if reason]


def _rounded(values: Tensor) -> list[list[float]]:
    """Return a ``(B, K)`` tensor as lists."""
    return [[round(value, DIGITS) for value in row] for row in values.tolist()]
