"""Stage 4: train and score a segmenter."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from ovseg.augment import Augmentation
from ovseg.metrics import SegmentationIoU
from ovseg.modules.common import by_class, stream_names
from ovseg.modules.scored import ScoredModule
from ovseg.segmenters.base import Segmenter
from ovseg.structures import Batch
from ovseg.vocabulary import Vocabulary

LOGGED = {"seen": "miou_seen", "unseen": "miou_unseen", "harmonic": "hiou", "mean": "miou"}


class SegmentationModule(ScoredModule):
    """Train a segmenter on label maps; score seen and unseen classes on named streams.

    `test` writes results.json: per stream `seen`, `unseen`, `harmonic`, `mean`, `background` and
    `per_class`, IoU in percent.

    Args:
        segmenter: Makes the segmenter from the number of classes.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler, stepped every training step.
        vocabulary: Linked from the data module.
        augment: Random views of the training images; None trains on them as they are.
        background_in_mean: Count background's IoU among the seen classes.
        score_background: Score pixels whose truth is background; else they are ignored.
        unseen_masks: Allow training on masks of unseen classes: a bound, no zero-shot result.
    """

    def __init__(
        self,
        segmenter: Callable[[int], Segmenter],
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        vocabulary: Vocabulary | None = None,
        augment: Augmentation | None = None,
        background_in_mean: bool = False,
        score_background: bool = True,
        unseen_masks: bool = False,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, vocabulary, unseen_masks)
        self.augment = augment
        self.protocol = {
            "background_in_mean": background_in_mean,
            "score_background": score_background,
        }
        self.segmenter = segmenter(self.vocabulary.num_classes)
        self.scores = nn.ModuleDict()
        self._metric()  # a protocol that contradicts itself fails now

    def _metric(self) -> SegmentationIoU:
        words = self.vocabulary
        return SegmentationIoU(words.num_classes, words.seen, words.unseen, **self.protocol)

    def setup(self, stage: str) -> None:
        """Make one metric per stream."""
        super().setup(stage)
        for kind in ("val", "test"):
            metrics = [self._metric() for _ in stream_names(self, kind)]
            self.scores[kind] = nn.ModuleList(metrics)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, 3, H, W)`` uint8 RGB to logits ``(B, N, H, W)``."""
        return self.segmenter(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the segmenter's loss."""
        images, labels = batch.images, batch.labels
        if self.augment is not None:
            images, labels = self.augment(images, labels, self.global_step, self.global_rank)
        loss = self.segmenter.loss(images, labels)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def _score(self, kind: str, batch: Batch, number: int) -> None:
        self.scores[kind][number].update(self.predict_step(batch, 0), batch.labels)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch of a validation stream."""
        self._score("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch of a test stream."""
        self._score("test", batch, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the label map ``(B, H, W)`` of each image."""
        return self.segmenter(batch.images).argmax(dim=1)

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self.report("val")

    def report(self, kind: str) -> dict[str, dict]:
        """Compute, log and reset the scores; those of the first stream also without its name."""
        results = {}
        for place, name in enumerate(stream_names(self, kind)):
            metric = self.scores[kind][place]
            scores = metric.compute()
            metric.reset()
            prefixes = [f"{kind}/{name}", kind] if place == 0 else [f"{kind}/{name}"]
            logged = {f"{p}/{LOGGED[key]}": scores[key].float() for key in LOGGED for p in prefixes}
            self.log_dict(logged, sync_dist=True, batch_size=1)
            classes = by_class(scores.pop("per_class"), self.vocabulary)
            facts = {**self.protocol, "unseen_masks": self.unseen_masks}
            results[name] = {**scores, "per_class": classes, **facts}
        return results
