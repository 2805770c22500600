"""Scores of a grounder on one stream, with the controls that they must be read beside."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat

from ovseg import controls
from ovseg.metrics import GroundingIoU
from ovseg.modules.common import by_class
from ovseg.structures import Batch, entity_targets
from ovseg.vocabulary import Vocabulary

METHODS = ("own", "swapped", "synonyms", "random_names", "foreground", "ceiling")
SCORES = ("miou", "miou_images", "choice")
GRID = tuple(round(0.02 * step, 2) for step in range(1, 50))


class GroundingScores(torch.nn.Module):
    """IoU of a grounder's masks against the annotator's, on images where it found every entity.

    The controls (Li et al. do not give them) are *swapped*: the mask of the other object scored
    against this truth, in images of two; *synonyms*: the grounder's mask when it is asked for each
    class by another word; *random_names*: when each name's embedding is replaced by a fixed random
    vector; *foreground*: the union of all true masks given to every name; *ceiling*: the true masks
    through the feature grid and back.

    Args:
        vocabulary: Classes of the stream.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.metrics = torch.nn.ModuleDict({m: Cut(vocabulary.num_classes) for m in METHODS})
        self.presence = Presence()
        self.count = Count()

    def update(self, masks: Tensor, batch: Batch, threshold: float) -> None:
        """Add a batch.

        Args:
            masks: ``(B, K, H, W)`` float in [0, 1].
            batch: With labels, entities and found.
            threshold: Probability from which a pixel belongs to the entity.
        """
        valid = scored(batch)
        self.count.update(int(valid.any(dim=1).sum()), len(batch))
        self.metrics["own"].add(masks, batch, valid, threshold)
        pair = valid & controls.two_objects(valid)[:, None]
        self.metrics["swapped"].add(controls.other(masks, valid), batch, pair, threshold)

    def update_renamed(self, how: str, masks: Tensor, batch: Batch, threshold: float) -> None:
        """Add masks ``(B, K, H, W)`` of "synonyms" or "random_names", against the same truth."""
        self.metrics[how].add(masks, batch, scored(batch), threshold)

    def update_presence(self, here: Tensor, absent: Tensor, valid: Tensor, batch: Batch) -> None:
        """Add how present names are that are in the pictures, and others that are not.

        Args:
            here: ``(B, K)`` float, of the names of the batch.
            absent: ``(B, K)`` float, of other names.
            valid: ``(B, K)`` bool: which of the other names count.
            batch: With entities and found.
        """
        counted = scored(batch)
        self.presence.update(here[counted], absent[valid & counted])

    def update_controls(self, batch: Batch) -> None:
        """Add a batch to the controls that do not depend on the grounder."""
        valid = scored(batch)
        targets, _ = entity_targets(batch.labels, batch.entities.class_ids)
        maps = [*batch.features.maps.values()]
        if batch.features.attention is not None:
            maps.append(batch.features.attention)
        grid = max(tuple(m.shape[-2:]) for m in maps)
        self.metrics["foreground"].add(controls.foreground(targets, valid), batch, valid)
        self.metrics["ceiling"].add(controls.ceiling(targets, grid), batch, valid)

    def compute(self) -> dict:
        """Return the scores, in percent, and forget what was added.

        Returns:
            `miou` (mean over classes), `miou_images`, `choice`, `per_class`, the first three of
            each control under its name, `presence` (see `Presence`), `images` scored and the share
            `excluded`.
        """
        if not self.count.update_called:  # an empty stream: every score is nan, none is missing
            self._add_nothing()
        own = self.metrics["own"].compute()
        results = {key: float(own[key]) for key in SCORES}
        results["per_class"] = by_class(own["per_class"][0], self.vocabulary)
        for method in METHODS[1:]:
            if self.metrics[method].update_called:  # the controls of test are not made in validate
                values = self.metrics[method].compute()
                results[method] = {key: float(values[key]) for key in SCORES}
        if self.presence.update_called:
            results["presence"] = self.presence.compute()
        used, total = self.count.compute()
        results |= {"images": used, "excluded": 1 - used / total if total else float("nan")}
        for metric in (*self.metrics.values(), self.presence, self.count):
            metric.reset()
        return results

    def _add_nothing(self) -> None:
        """Count an update without images, which torchmetrics otherwise warns of."""
        masks = torch.zeros(0, 1, 1, 1, device=self.count.device)
        ids = torch.zeros(0, 1, dtype=torch.long, device=self.count.device)
        self.count.update(0, 0)
        self.metrics["own"].update(masks, masks, masks.bool(), ids, ids.bool())


class Cut(GroundingIoU):
    """IoU at one threshold, fed with batches."""

    def add(self, masks: Tensor, batch: Batch, valid: Tensor, threshold: float = 0.5) -> None:
        """Add masks ``(B, K, H, W)`` of the ``valid (B, K)`` entities of a batch."""
        self.thresholds = [threshold]
        targets, pixels = entity_targets(batch.labels, batch.entities.class_ids)
        self.update(masks, targets, pixels, batch.entities.class_ids, valid)


class Calibration(torch.nn.Module):
    """Choose the threshold of the best mean IoU over classes from a grid.

    Args:
        num_classes: Number of classes with background.
        grid: Thresholds to choose from.
    """

    def __init__(self, num_classes: int, grid: tuple[float, ...] = GRID) -> None:
        super().__init__()
        self.metric = GroundingIoU(num_classes, grid)

    def update(self, masks: Tensor, batch: Batch) -> None:
        """Add masks ``(B, K, H, W)`` in [0, 1]."""
        targets, pixels = entity_targets(batch.labels, batch.entities.class_ids)
        self.metric.update(masks, targets, pixels, batch.entities.class_ids, scored(batch))

    def best(self) -> float:
        """Return the best threshold (the middle one of equals) and forget what was added.

        Raises:
            ValueError: If no image could be scored.
        """
        miou = self.metric.compute()["miou"]
        self.metric.reset()
        if miou.isnan().all():
            raise ValueError("no validation image in which the annotator found every entity")
        places = (miou == miou.nan_to_num(-1).max()).nonzero()[:, 0]
        return float(self.metric.thresholds[int(places[len(places) // 2])])


class Presence(Metric):
    """How well `Grounder.presence` tells names in the picture from others.

    Area under the ROC curve, in percent; 50 is chance.
    """

    full_state_update = False
    scores: Tensor
    present: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("present", [], dist_reduce_fx="cat")

    def update(self, here: Tensor, absent: Tensor) -> None:
        """Add ``(N,)`` of names in the picture, ``(M,)`` of names that are not."""
        scores = torch.cat([here, absent])
        self.scores.append(scores)
        self.present.append(torch.arange(len(scores), device=scores.device) < len(here))

    def compute(self) -> float:
        """Return the area, NaN if there are not names of both kinds."""
        scores, present = dim_zero_cat(self.scores), dim_zero_cat(self.present)
        if not present.any() or present.all():
            return float("nan")
        return 100 * float(binary_auroc(scores.double(), present.long()))


class Count(Metric):
    """Images scored and images seen."""

    full_state_update = False
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("images", torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, used: int, total: int) -> None:
        """Add a batch's numbers."""
        self.images += torch.tensor([used, total], device=self.images.device)

    def compute(self) -> tuple[int, int]:
        """Return images scored, images seen."""
        return int(self.images[0]), int(self.images[1])


def shown(batch: Batch) -> Tensor:
    """Return ``(B, K)`` bool: entities that the annotator found and the label map shows.

    One whose every pixel belongs to another, or is ignored, has no mask to learn from.
    """
    targets, _ = entity_targets(batch.labels, batch.entities.class_ids)
    return batch.found & batch.entities.valid & targets.flatten(2).any(dim=2)


def scored(batch: Batch) -> Tensor:
    """Return ``(B, K)`` bool: entities of images where every entity was found and is `shown`."""
    valid = batch.entities.valid
    complete = (shown(batch) | ~valid).all(dim=1) & valid.any(dim=1)
    return valid & complete[:, None]
