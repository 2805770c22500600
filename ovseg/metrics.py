"""Intersection over union of label maps and of entity masks, over a whole data set.

All values are percentages. A class whose union is empty has none (NaN) and is left out of means.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from ovseg.controls import other, two_objects
from ovseg.errors import importing_mmseg
from ovseg.structures import IGNORE

EXACT = 2**24
"""MMSegmentation counts pixels in float32, exactly up to here."""


def mmseg_iou_metric() -> type:
    """Import MMSegmentation's IoUMetric without its warnings.

    Raises:
        ImportError: If MMSegmentation, or the system library that OpenCV needs, is missing.
    """
    with importing_mmseg():
        from mmseg.evaluation.metrics.iou_metric import IoUMetric
    return IoUMetric


def harmonic(seen: Tensor, unseen: Tensor) -> Tensor:
    """Return 2SU / (S + U); 0 if both are.

    >>> harmonic(torch.tensor(60.0), torch.tensor(30.0))
    tensor(40.)
    """
    total = seen + unseen
    return torch.where(total == 0, total, 2 * seen * unseen / total)


class SegmentationIoU(Metric):
    """Mean IoU of label maps over seen and unseen classes, scored by MMSegmentation's functions.

    Areas come from `IoUMetric.intersect_and_union` and are summed as int64 over images and ranks;
    `IoUMetric.total_area_to_metrics` turns them into IoU.

    Args:
        num_classes: Number of classes with background (id 0).
        seen: Ids of the seen classes.
        unseen: Ids of the unseen classes.
        background_in_mean: Count background's IoU among the seen classes.
        score_background: Score pixels whose truth is background; else they are ignored.
        score_seen: Score pixels whose truth is a seen class; else they are ignored.

    Raises:
        ValueError: If background's IoU is to be in the mean but its pixels are ignored.
    """

    full_state_update = False
    areas: Tensor
    indices: list[Tensor]
    image_areas: list[Tensor]

    def __init__(
        self,
        num_classes: int,
        seen: Sequence[int],
        unseen: Sequence[int],
        background_in_mean: bool = False,
        score_background: bool = True,
        score_seen: bool = True,
    ) -> None:
        super().__init__()
        if background_in_mean and not score_background:
            raise ValueError(
                "background's IoU cannot be in the mean while its pixels are ignored: set "
                "score_background or leave background_in_mean"
            )
        self.num_classes = num_classes
        self.seen = [0, *seen] if background_in_mean else list(seen)
        self.unseen = list(unseen)
        self.ignored = ([] if score_background else [0]) + ([] if score_seen else list(seen))
        # rows: intersection, union, prediction, truth
        self.add_state("areas", torch.zeros(4, num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("indices", [], dist_reduce_fx="cat")
        self.add_state("image_areas", [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, labels: Tensor, indices: Tensor | None = None) -> None:
        """Add images.

        Args:
            predictions: ``(B, H, W)`` int64 class ids.
            labels: ``(B, H, W)`` int64 class ids, 255 = ignore.
            indices: ``(B,)`` int64 numbers of the images, to keep the areas of each for `images`;
                None keeps the sums alone.

        Raises:
            ValueError: If shapes differ, or an id is not of a class.
        """
        if predictions.shape != labels.shape:
            raise ValueError(
                f"predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)} must "
                "have the same shape"
            )
        self._check(predictions, "a prediction")
        if self.ignored:
            self._check(labels.masked_fill(labels == IGNORE, 0), "a label")
            labels = self.scored(labels)
        if indices is None:
            areas = self._count(predictions, labels)
        else:
            pairs = zip(predictions, labels, strict=True)
            each = torch.stack([self._count(*pair) for pair in pairs])
            self.indices.append(indices.to(self.areas))
            self.image_areas.append(each[:, [0, 1, 3]].int())
            areas = each.sum(dim=0)
        if areas[3].sum() != (labels != IGNORE).sum():  # MMSegmentation drops foreign ids
            self._check(labels.masked_fill(labels == IGNORE, 0), "a label")
        self.areas += areas

    def scored(self, labels: Tensor) -> Tensor:
        """Return label maps in which every pixel that is not scored is ignored (255)."""
        return labels.masked_fill(torch.isin(labels, labels.new_tensor(self.ignored)), IGNORE)

    def _count(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """Return the areas ``(4, N)`` of label maps of any shape."""
        score = mmseg_iou_metric().intersect_and_union
        areas = torch.zeros_like(self.areas)
        for start in range(0, labels.numel(), EXACT):
            part = (ids.reshape(-1)[start : start + EXACT] for ids in (predictions, labels))
            areas += torch.stack(score(*part, self.num_classes, IGNORE)).to(areas)
        return areas

    def _check(self, ids: Tensor, what: str) -> None:
        if not ids.numel():
            return
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= self.num_classes:
            bad = low if low < 0 else high
            raise ValueError(f"{what} must be a class id in 0..{self.num_classes - 1}, got {bad}")

    def compute(self) -> dict[str, Tensor]:
        """Return `seen`, `unseen`, `harmonic`, `mean`, `background` and `per_class` (N,)."""
        areas = self.areas.cpu().double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = mmseg_iou_metric().total_area_to_metrics(*areas, ["mIoU"])
        iou = 100 * torch.from_numpy(scores["IoU"])
        seen, unseen = iou[self.seen].nanmean(), iou[self.unseen].nanmean()
        return {
            "seen": seen,
            "unseen": unseen,
            "harmonic": harmonic(seen, unseen),
            "mean": iou[[*self.seen, *self.unseen]].nanmean(),
            "background": iou[0],
            "per_class": iou,
        }

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Gather what was kept of single images, in the order of their numbers, without repeats.

        Returns:
            Their numbers ``(I,)`` int64 and areas ``(I, 3, N)`` int32: intersection, union, truth;
            the same on every rank.
        """
        with self.sync_context():
            if not len(self.indices):
                return np.zeros(0, np.int64), np.zeros((0, 3, self.num_classes), np.int32)
            indices = dim_zero_cat(self.indices).cpu().numpy()
            areas = dim_zero_cat(self.image_areas).cpu().numpy()
        numbers, first = np.unique(indices, return_index=True)
        return numbers, areas[first]


def confusion(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each truth and prediction, image by image.

    Args:
        predictions: ``(B, H, W)`` int64 class ids in 0..N-1.
        labels: ``(B, H, W)`` int64 class ids in 0..N-1, 255 = ignore.
        num_classes: N.

    Returns:
        ``(B, N, N)`` int64: rows are the truth, columns the prediction.
    """
    images = torch.arange(len(labels), device=labels.device)[:, None, None]
    cells = (images * num_classes + labels) * num_classes + predictions
    shape = (len(labels), num_classes, num_classes)
    return torch.bincount(cells[labels != IGNORE], minlength=math.prod(shape)).view(shape)


def confusion_iou(confusions: Tensor) -> Tensor:
    """Return IoU in percent ``(..., N)`` from confusions ``(..., N, N)``; NaN of an empty union."""
    both = confusions.diagonal(dim1=-2, dim2=-1)
    return 100 * both.double() / (confusions.sum(-1) + confusions.sum(-2) - both)


class GroundingIoU(Metric):
    """IoU of entity masks, at one threshold or several.

    Args:
        num_classes: Number of classes with background (id 0).
        thresholds: Probabilities from which a pixel belongs to the entity.
    """

    full_state_update = False
    areas: Tensor
    images: Tensor
    entities: Tensor
    choices: Tensor
    asked: Tensor

    def __init__(self, num_classes: int, thresholds: Sequence[float] = (0.5,)) -> None:
        super().__init__()
        self.thresholds = list(thresholds)
        count = len(self.thresholds)
        long = {"dtype": torch.long}
        # per threshold, intersection and union of each class
        self.add_state("areas", torch.zeros(count, 2, num_classes, **long), dist_reduce_fx="sum")
        # per threshold, the sum of the entities' own IoU
        self.add_state("images", torch.zeros(count, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("entities", torch.zeros((), **long), dist_reduce_fx="sum")
        self.add_state("choices", torch.zeros(count, **long), dist_reduce_fx="sum")
        self.add_state("asked", torch.zeros((), **long), dist_reduce_fx="sum")

    def update(
        self, masks: Tensor, targets: Tensor, pixels: Tensor, class_ids: Tensor, valid: Tensor
    ) -> None:
        """Add images.

        Args:
            masks: ``(B, K, H, W)`` float in [0, 1].
            targets: ``(B, K, H, W)`` float in {0, 1}.
            pixels: ``(B, 1, H, W)`` bool; False is ignored.
            class_ids: ``(B, K)`` int64.
            valid: ``(B, K)`` bool: entities to score.
        """
        truth = (targets > 0) & pixels
        pair = two_objects(valid)[:, None] & valid
        rival = other(truth, valid)
        ids = class_ids[valid]
        self.entities += valid.sum()
        self.asked += pair.sum()
        for number, threshold in enumerate(self.thresholds):
            mask = (masks >= threshold) & pixels
            intersection, union = _areas(mask, truth)
            self.areas[number, 0].index_add_(0, ids, intersection[valid])
            self.areas[number, 1].index_add_(0, ids, union[valid])
            own = _ratio(intersection, union)
            self.images[number] += own[valid].sum()
            self.choices[number] += (own > _ratio(*_areas(mask, rival)))[pair].sum()

    def compute(self) -> dict[str, Tensor]:
        """Return `miou`, `miou_images`, `choice`, each (T,) or a scalar, and `per_class` (T, N).

        `miou` is the mean over classes of the data set's IoU, `miou_images` the mean over entities
        of their own image's; `choice` the share of entities in images of two objects whose mask
        fits their own object better than the other one (NaN without such images).
        """
        per_class = 100 * self.areas[:, 0].double() / self.areas[:, 1]
        return {
            "miou": per_class.nanmean(dim=1),
            "miou_images": 100 * self.images / self.entities,
            "choice": 100 * self.choices.double() / self.asked,
            "per_class": per_class,
        }


def _areas(mask: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return intersection and union ``(B, K)`` of bool masks ``(B, K, H, W)``."""
    return (mask & truth).sum(dim=(2, 3)), (mask | truth).sum(dim=(2, 3))


def _ratio(intersection: Tensor, union: Tensor) -> Tensor:
    return intersection.double() / union.clamp(min=1)
