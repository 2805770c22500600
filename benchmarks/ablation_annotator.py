"""An annotator of `ablations.py`: of each object only the largest connected piece."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from ovseg.annotators.mmseg import MMSegAnnotator
from ovseg.structures import Annotation, DiffusionSample


class LargestPiece(MMSegAnnotator):
    """The counterpart of a detector's top-1 instance, for an annotator that knows no instances."""

    def annotate(self, sample: DiffusionSample) -> Annotation:
        """Return masks that are zero outside of their largest piece."""
        found = super().annotate(sample)
        masks = found.masks.clone()
        for mask in masks.flatten(0, 1):
            _, pieces, stats, _ = cv2.connectedComponentsWithStats(
                (mask >= 0.5).cpu().numpy().astype(np.uint8)
            )
            if len(stats) > 2:
                largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
                mask *= torch.from_numpy((pieces == largest) | (pieces == 0)).to(mask)
        return Annotation(masks, found.scores, found.found)
