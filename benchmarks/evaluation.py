"""What scoring VOC 2012 val costs, and whether libraries agree on the score.

    python benchmarks/evaluation.py --out runs/benchmarks/evaluation.json

1,449 label maps of 375 x 500 pixels and 21 classes, one of which occurs nowhere, in batches of 16,
as `ovseg test` hands them to the metric. *Ours* keeps the areas of every image too; *loop* is what
MMSegmentation's `IoUMetric` does; *jaccard* and *mean_iou* are torchmetrics' `JaccardIndex` and
`MeanIoU`. Each form runs in a process of its own: seconds are those of scoring alone, memory is
what the process's peak grew by meanwhile. `MeanIoU` cannot ignore: it is given right answers there.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import torch
from common import finish, parser, spread
from metric import CLASSES, label_maps
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

from ovseg.metrics import SegmentationIoU, mmseg_iou_metric
from ovseg.structures import IGNORE

IMAGES, HEIGHT, WIDTH, BATCH = 1449, 375, 500, 16


class Ours:
    """Our metric."""

    def __init__(self) -> None:
        self.metric = SegmentationIoU(CLASSES, range(1, 16), range(16, CLASSES))

    def add(self, predictions: Tensor, labels: Tensor, first: int) -> None:
        self.metric.update(predictions, labels, torch.arange(first, first + len(labels)))

    def compute(self) -> Tensor:
        self.metric.images()
        return self.metric.compute()["per_class"] / 100


class Loop:
    """MMSegmentation's loop over images."""

    def __init__(self) -> None:
        self.score, self.results = mmseg_iou_metric(), []

    def add(self, predictions: Tensor, labels: Tensor, first: int) -> None:
        for pair in zip(predictions, labels, strict=True):
            self.results.append(self.score.intersect_and_union(*pair, CLASSES, IGNORE))

    def compute(self) -> Tensor:
        totals = [sum(areas) for areas in zip(*self.results, strict=True)]
        return torch.from_numpy(self.score.total_area_to_metrics(*totals)["IoU"]).double()


class Jaccard:
    """torchmetrics' confusion matrix."""

    def __init__(self) -> None:
        self.metric = MulticlassJaccardIndex(CLASSES, average="none", ignore_index=IGNORE)

    def add(self, predictions: Tensor, labels: Tensor, first: int) -> None:
        self.metric.update(predictions, labels)

    def compute(self) -> Tensor:
        return self.metric.compute().double()


class Mean:
    """torchmetrics' mean over images."""

    def __init__(self) -> None:
        self.metric = MeanIoU(CLASSES, per_class=True, input_format="index")

    def add(self, predictions: Tensor, labels: Tensor, first: int) -> None:
        self.metric.update(predictions, torch.where(labels == IGNORE, predictions, labels))

    def compute(self) -> Tensor:
        iou = self.metric.compute().double()
        return iou.where(iou >= 0, torch.nan)  # it says -1 of a class that is nowhere


FORMS = {"loop": Loop, "ours": Ours, "jaccard": Jaccard, "mean_iou": Mean}


def batches(images: int, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield predictions and labels, always the same ones; the last class occurs nowhere."""
    predictions, labels = label_maps(BATCH, height, width, "cpu")
    predictions = predictions.clamp(max=CLASSES - 2)
    labels = torch.where(labels == CLASSES - 1, CLASSES - 2, labels)
    for first in range(0, images, BATCH):
        count, shift = min(BATCH, images - first), first // BATCH
        yield tuple(maps.roll(37 * shift, 2)[:count] for maps in (predictions, labels))


def measure(form: str, shape: tuple[int, int, int]) -> dict:
    """Score everything once; return seconds, MiB and IoU per class."""
    scorer, seconds, first = FORMS[form](), 0.0, 0
    warm = next(batches(*shape))
    FORMS[form]().add(*warm, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for predictions, labels in batches(*shape):
        start = time.perf_counter()
        scorer.add(predictions, labels, first)
        seconds += time.perf_counter() - start
        first += len(labels)
    start = time.perf_counter()
    iou = scorer.compute()
    seconds += time.perf_counter() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "mib": grown / 1024, "iou": iou.tolist()}


def main() -> dict:
    """Run the forms in turn, each round in fresh processes."""
    arguments = parser(__doc__.splitlines()[0], repeats=3)
    args = arguments.parse_args()
    rounds: dict[str, list[dict]] = {form: [] for form in FORMS}
    fresh = {"mp_context": multiprocessing.get_context("spawn"), "max_tasks_per_child": 1}
    with ProcessPoolExecutor(1, **fresh) as pool:
        for _ in range(args.repeats):
            for form, found in rounds.items():
                found.append(pool.submit(measure, form, (IMAGES, HEIGHT, WIDTH)).result())
    wanted = torch.tensor(rounds["loop"][0]["iou"], dtype=torch.double)
    there = ~wanted.isnan()
    result = {"images": IMAGES, "miou": round(100 * float(wanted[there].mean()), 4), "forms": {}}
    for form, found in rounds.items():
        iou = torch.tensor(found[0]["iou"], dtype=torch.double)
        absent = iou[~there]
        result["forms"][form] = {
            "seconds": spread([one["seconds"] for one in found]),
            "peak_mib": spread([one["mib"] for one in found]),
            "largest_difference_of_iou": float(f"{float((iou - wanted)[there].abs().max()):.3g}"),
            "its_mean": round(100 * float(iou.nanmean()), 4),
            "absent_class": "none" if bool(absent.isnan().all()) else float(absent[0]),
        }
    return finish("evaluation", result, "cpu", args.out)


if __name__ == "__main__":
    main()
