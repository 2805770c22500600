"""Look at what a segmenter gets wrong: confusions of classes, and the worst images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ovseg.metrics import SegmentationIoU, confusion, confusion_iou
from ovseg.report.confusion import as_csv, draw
from ovseg.report.pictures import Picture
from ovseg.report.worst import WorstImage, render
from ovseg.results import write_file
from ovseg.structures import Batch


class TestMistakes(Callback):
    """Write confusions and worst images of every test stream of a `SegmentationModule`.

    Into the trainer's `default_root_dir` go ``confusion_STREAM.png``, a heat map of the shares of
    each class's pixels, ``confusion_STREAM.csv``, the pixels themselves, and ``worst_STREAM.html``,
    a page of the images of the lowest mean IoU over the classes that are in them or were
    predicted (background only if the protocol has it in the mean). While testing no more images
    are kept than are shown.

    Args:
        worst: Images per page; 0 makes none.

    Raises:
        ValueError: If worst is negative.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(self, worst: int = 12) -> None:
        if worst < 0:
            raise ValueError(f"worst must be >= 0, got {worst}")
        self.worst = worst
        self._streams: dict[str, Mistakes] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        metrics = pl_module.scores["test"]
        self._streams = {
            name: Mistakes(metric, self.worst)
            for name, metric in zip(trainer.datamodule.test, metrics, strict=True)
        }

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch, and keep its images if they are among the worst so far."""
        list(self._streams.values())[dataloader_idx].add(batch, outputs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather from all processes and write."""
        folder, vocabulary = Path(trainer.default_root_dir), trainer.datamodule.vocabulary
        for name, mistakes in self._streams.items():
            matrix, images, tested = mistakes.gather(trainer)
            if not trainer.is_global_zero or trainer.fast_dev_run:
                continue
            write_file(folder / f"confusion_{name}.png", draw(matrix, vocabulary, name))
            table = as_csv(matrix, vocabulary.names)
            write_file(folder / f"confusion_{name}.csv", table.encode())
            if self.worst:
                page = render(name, images, tested, vocabulary)
                write_file(folder / f"worst_{name}.html", page.encode())


class Mistakes:
    """What one process has seen of a stream.

    Args:
        metric: Says which pixels are scored and which classes are in the mean.
        worst: How many images to keep.
    """

    def __init__(self, metric: SegmentationIoU, worst: int) -> None:
        self.metric, self.worst = metric, worst
        classes = metric.num_classes
        self.matrix = torch.zeros(classes, classes, dtype=torch.long, device=metric.device)
        self.tested = torch.zeros((), dtype=torch.long, device=metric.device)
        self.images: list[WorstImage] = []

    def add(self, batch: Batch, predictions: Tensor) -> None:
        """Add a batch and its label maps ``(B, H, W)``."""
        labels = self.metric.scored(batch.labels)
        confusions = confusion(predictions, labels, self.metric.num_classes)
        self.matrix += confusions.sum(dim=0)
        self.tested += len(batch)
        if not self.worst:
            return
        classes = [*self.metric.seen, *self.metric.unseen]
        iou = confusion_iou(confusions)[:, classes].cpu()
        scores = iou.nanmean(dim=1).tolist()
        for row, (score, index) in enumerate(zip(scores, batch.indices.tolist(), strict=True)):
            full = len(self.images) == self.worst
            if score != score or (full and (score, index) > self.images[-1].order):
                continue
            found = zip(classes, iou[row].tolist(), strict=True)
            truth, said = labels[row].to(torch.uint8), predictions[row].to(torch.uint8)
            picture = Picture.of(batch, row, truth=truth, prediction=said)
            values = {class_id: value for class_id, value in found if value == value}
            self.images = self._first([*self.images, WorstImage(score, index, values, picture)])

    def _first(self, images: list[WorstImage]) -> list[WorstImage]:
        return sorted(images, key=lambda image: image.order)[: self.worst]

    def gather(self, trainer: Trainer):
        """Return the sum of all processes' confusions, the worst of their images, their number.

        Returns:
            ``(N, N)`` int64, at most `worst` images in order, and how many were tested.
        """
        matrix, tested = (
            trainer.strategy.reduce(count, reduce_op="sum") for count in (self.matrix, self.tested)
        )
        images = [self.images]
        if trainer.world_size > 1:
            images = [[]] * trainer.world_size
            torch.distributed.all_gather_object(images, self.images)
        worst = self._first([image for part in images for image in part])
        return matrix.cpu().numpy(), worst, int(tested)
