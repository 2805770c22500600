"""The contract of an annotator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import nn

from ovseg.backbones.base import DiffusionBackbone
from ovseg.structures import Annotation, DiffusionSample
from ovseg.vocabulary import Vocabulary


class Annotator(nn.Module, ABC):
    """Say which pixels of a sample are which of its entities.

    A detector looks at ``sample.images`` and knows some classes; a grounder looks at
    ``sample.features`` and knows every name. Always in eval mode, without gradients.
    """

    def bind(self, vocabulary: Vocabulary) -> None:
        """Tell the annotator which classes there are; called once, before `annotate`."""
        self.vocabulary = vocabulary

    def check(self, backbone: DiffusionBackbone) -> None:  # noqa: B027 - most take any backbone
        """Refuse, by a ValueError, a backbone whose samples this annotator cannot read."""

    @abstractmethod
    def annotate(self, sample: DiffusionSample) -> Annotation:
        """Return masks ``(B, K, H, W)`` in [0, 1] at image size, scores and found ``(B, K)``.

        An entity that the annotator does not know, or was not asked for, is not found.
        """

    @abstractmethod
    def describe(self) -> dict:
        """Return JSON-ready facts for `dataset.json`.

        ``requested_classes``: ids that it was asked for; ``trained_on``: ids whose masks it has
        been trained with; ``source``; ``digest``. Leaving out one of the first two says: all.
        ``practices``, if there are any: what was done in its training, as `Stream.practices` has
        it. Whatever decides the masks must change one of these facts, or one of its own.
        """


def taught_by(facts: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[set[int], set[int]]:
    """Return the classes that an annotator was asked for, and those it was trained with.

    One that does not say counts as asked for, and trained with, all of the vocabulary.

    Args:
        facts: What it says of itself: `Annotator.describe`.
        vocabulary: That it is bound to.
    """
    values = (facts.get(key) for key in ("requested_classes", "trained_on"))
    every = [c.id for c in vocabulary.classes]
    asked, trained = (set(every if value is None else value) for value in values)
    return asked, trained


def practices_of(facts: Mapping[str, Any]) -> set[str]:
    """Return what an annotator's own training did that a protocol may rule out; see `taught_by`."""
    return set(facts.get("practices") or ())


class AroundAnnotator(Annotator):
    """An annotator that works on what another one says, and takes what that takes."""

    def __init__(self, annotator: Annotator) -> None:
        super().__init__()
        self.annotator = annotator

    def bind(self, vocabulary: Vocabulary) -> None:
        """Tell both which classes there are."""
        super().bind(vocabulary)
        self.annotator.bind(vocabulary)

    def check(self, backbone: DiffusionBackbone) -> None:
        """Refuse a backbone whose samples the other one cannot read."""
        self.annotator.check(backbone)
