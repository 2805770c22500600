"""An annotator's masks without specks: small regions go to what surrounds them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from ovseg.annotators.base import Annotator, AroundAnnotator
from ovseg.structures import Annotation, DiffusionSample, to_label_map


class RefinedAnnotator(AroundAnnotator):
    """Give small regions of another annotator's label maps to their surroundings, by a vote.

    A region is what is connected of one entity, or of the background; pixels that share a corner
    are connected. One that is smaller than the share goes to whatever has most of the pixels that
    touch it, the smallest region first; of equals to the background, then to the entity named
    first. Its pixels are then certain: 1 in one mask or none, 0 in the others. The largest
    region of each stays, however small, so nothing that was found is lost: whether it is too small
    is a filter's to say (`ovseg.quality`). Other pixels, scores and found are not touched.

    Args:
        annotator: Whose masks they are.
        min_region: Share of the image that a region must have, in (0, 1).
        threshold: Probability at which a pixel belongs to an entity: that of the stream.

    Raises:
        ValueError: If min_region or threshold lies outside of (0, 1).
    """

    def __init__(
        self, annotator: Annotator, min_region: float = 0.001, threshold: float = 0.5
    ) -> None:
        super().__init__(annotator)
        if not (0 < min_region < 1 and 0 < threshold < 1):
            raise ValueError(
                f"min_region and threshold must be in (0, 1), got {min_region} and {threshold}"
            )
        self.min_region, self.threshold = min_region, threshold

    @torch.no_grad()
    def annotate(self, sample: DiffusionSample) -> Annotation:
        """Return the annotation, its small regions given away."""
        annotation = self.annotator.annotate(sample)
        found = annotation.found & sample.entities.valid
        owners = torch.arange(1, found.shape[1] + 1).to(found.device).expand(found.shape)
        before = to_label_map(annotation.masks, owners, found, self.threshold)
        numbers = annotation.instances
        masks = annotation.masks.clone()
        numbers = None if numbers is None else numbers.clone()
        least = self.min_region * before[0].numel()
        for row, labels in enumerate(before.cpu().numpy()):
            ids = None if numbers is None else numbers[row].cpu().numpy()
            after = vote(labels, least, ids)
            changed = torch.from_numpy(after != labels).to(masks.device)
            new = torch.from_numpy(after).to(masks.device)
            certain = (owners[row, :, None, None] == new).to(masks)
            masks[row] = torch.where(changed, certain, masks[row])
            if ids is not None:
                numbers[row] = torch.from_numpy(ids).to(numbers)
        return replace(annotation, masks=masks, instances=numbers)

    def describe(self) -> dict:
        """Return JSON-ready facts: the annotator's, and what was done to its masks."""
        facts = self.annotator.describe()
        own = {"min_region": self.min_region, "region_threshold": self.threshold}
        return {
            **facts,
            "source": f"{facts['source']}, small regions given away",
            "digest": f"{facts['digest']}+{self.min_region}+{self.threshold}",
            "refined": own,
        }


class _Region(NamedTuple):
    """A small region: its pixels, where its mask stands in the image, and that mask."""

    size: int
    place: tuple[slice, slice]
    mask: np.ndarray


def vote(labels: np.ndarray, least: float, numbers: np.ndarray | None = None) -> np.ndarray:
    """Return a label map ``(H, W)`` in which regions of less than so many pixels are given away.

    Args:
        labels: ``(H, W)`` int64 >= 0.
        least: Pixels that a region must have, unless it is the largest of its label.
        numbers: ``(H, W)`` int64 instance ids that follow, in place; 0 where the label becomes 0.
    """
    import cv2  # needs libGL, which whoever only reads datasets may lack

    labels = labels.copy()
    while small := _small(labels, least):
        given = np.zeros(labels.shape, dtype=bool)
        for region in sorted(small, key=lambda region: region.size):
            here = labels[region.place]
            around = cv2.dilate(region.mask, np.ones((3, 3), np.uint8)) > region.mask
            if given[region.place][around].any():
                continue  # it may have grown: the next round looks at it anew
            winner = int(np.bincount(here[around]).argmax())
            inside = region.mask > 0
            if numbers is not None:
                near = numbers[region.place]
                theirs = near[around & (here == winner)]
                near[inside] = np.bincount(theirs).argmax() if winner else 0
            here[inside] = winner
            given[region.place][inside] = True
    return labels


def _small(labels: np.ndarray, least: float) -> list[_Region]:
    """Return the regions that are too small, but for the largest of each label."""
    import cv2

    found = []
    for label in np.unique(labels):
        count, regions, facts, _ = cv2.connectedComponentsWithStats(
            (labels == label).astype(np.uint8), connectivity=8
        )
        sizes = facts[1:, cv2.CC_STAT_AREA]
        for number in range(1, count):
            if sizes[number - 1] >= least or number - 1 == sizes.argmax():
                continue
            x, y, width, height, size = facts[number]
            place = slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)
            found.append(_Region(int(size), place, (regions[place] == number).astype(np.uint8)))
    return found
