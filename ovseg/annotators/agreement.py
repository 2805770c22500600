"""Two annotators for the same samples: how far they agree."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ovseg.annotators.base import Annotator, practices_of, taught_by
from ovseg.backbones.base import DiffusionBackbone
from ovseg.structures import Annotation, DiffusionSample
from ovseg.vocabulary import Vocabulary


class AgreementAnnotator(Annotator):
    """Annotate by one annotator, and say of each mask how far a second one agrees with it.

    Masks, scores, found and instances are those of the first, untouched; the agreement is a field
    of its own, so that whoever uses the masks decides what to make of it.

    Args:
        first: Whose masks they are.
        second: Who is asked for its opinion.
    """

    def __init__(self, first: Annotator, second: Annotator) -> None:
        super().__init__()
        self.first, self.second = first, second

    def bind(self, vocabulary: Vocabulary) -> None:
        """Tell both which classes there are.

        Raises:
            ValueError: If one of them refuses.
        """
        super().bind(vocabulary)
        self.first.bind(vocabulary)
        self.second.bind(vocabulary)

    def check(self, backbone: DiffusionBackbone) -> None:
        """Refuse a backbone that one of them cannot read.

        Raises:
            ValueError: If one of them refuses.
        """
        self.first.check(backbone)
        self.second.check(backbone)

    @torch.no_grad()
    def annotate(self, sample: DiffusionSample) -> Annotation:
        """Return the first's annotation with the IoU of both masks of each entity as `agreement`.

        It is 0 where either of them did not find the entity.
        """
        mine, theirs = self.first.annotate(sample), self.second.annotate(sample)
        return replace(mine, agreement=agreement(mine, theirs))

    def describe(self) -> dict:
        """Return JSON-ready facts: the first's, and both under ``first`` and ``second``.

        ``trained_on`` are the classes of either, for samples may be chosen by their agreement.
        """
        first, second = self.first.describe(), self.second.describe()
        asked, trained = taught_by(first, self.vocabulary)
        _, others = taught_by(second, self.vocabulary)
        return {
            "source": f"agreement of {first['source']} and {second['source']}",
            "digest": f"{first['digest']}+{second['digest']}",
            "requested_classes": sorted(asked),
            "trained_on": sorted(trained | others),
            "practices": sorted(practices_of(first) | practices_of(second)),
            "first": first,
            "second": second,
        }


def agreement(one: Annotation, other: Annotation) -> Tensor:
    """Return the IoU ``(B, K)`` of the masks of each entity, 0 unless both have found it.

    A pixel is in a mask where it reaches 0.5.
    """
    mine, theirs = one.masks >= 0.5, other.masks >= 0.5
    common = (mine & theirs).sum(dim=(2, 3))
    either = (mine | theirs).sum(dim=(2, 3)).clamp(min=1)
    return common / either * (one.found & other.found)
