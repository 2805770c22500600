"""Stage 4: train and score a segmenter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from ovseg.augment import Views
from ovseg.inference import Inference
from ovseg.losses_segmentation import PixelLoss, ignore_borders
from ovseg.metrics import SegmentationIoU
from ovseg.modules.common import (
    by_class,
    check_output,
    stream_names,
    train_stream,
    write_output,
    write_results,
)
from ovseg.modules.scored import ScoredModule
from ovseg.modules.segmentation_checks import (
    agreed_protocol,
    check_image_size,
    check_own_size,
    check_precision,
    sizes_of,
)
from ovseg.protocol import words
from ovseg.results import IMAGES, TABLE, comparable, pack_images, table
from ovseg.segmenters.base import Segmenter
from ovseg.segmenters.folder import check_saveable, save_segmenter
from ovseg.structures import Batch
from ovseg.vocabulary import Vocabulary

BOUND = " This run was allowed masks of unseen classes: a bound, no zero-shot result."
LOGGED = {"seen": "miou_seen", "unseen": "miou_unseen", "harmonic": "hiou", "mean": "miou"}


class SegmentationModule(ScoredModule):
    """Train a segmenter on label maps; score seen and unseen classes on named streams.

    `test` writes results.json: per stream `seen`, `unseen`, `harmonic`, `mean`, `background` and
    `per_class`, IoU in percent, and the `protocol`. Beside it stand results_images.npz, the areas
    of every image for `ovseg compare`, and, with a named protocol, results.md, a table.

    Args:
        segmenter: Makes the segmenter from the number of classes.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler, stepped every training step.
        vocabulary: Linked from the data module.
        augment: Random views of the training images; None trains on them as they are.
        protocol: Name or path of a protocol, which decides how is scored; None leaves that to the
            next two.
        background_in_mean: Count background's IoU among the seen classes; by default not.
        score_background: Score pixels whose truth is background (the default); else they are
            ignored.
        unseen_masks: Allow training on masks of unseen classes: a bound, no zero-shot result.
        inference: How whole images are seen; None sees each at once, mirrored too if the protocol
            says so.
        ignore_band: Pixels on each side of a label's border that training ignores.
        output: Folder to write the trained segmenter to at the end of `fit`; it can label images
            (`ovseg.annotators.mmseg`).

    Raises:
        ValueError: If ignore_band is negative, or the protocol is unknown, contradicts another
            argument or itself, or is one of other classes or another split than the data module's,
            or the segmenter's weights were trained on other classes, with masks of unseen ones, or
            as the protocol rules out.
    """

    def __init__(
        self,
        segmenter: Callable[[int], Segmenter],
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        vocabulary: Vocabulary | None = None,
        augment: Views | None = None,
        protocol: str | None = None,
        background_in_mean: bool | None = None,
        score_background: bool | None = None,
        unseen_masks: bool = False,
        inference: Inference | None = None,
        ignore_band: int = 0,
        output: str | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, vocabulary, unseen_masks)
        self.augment, self.output = augment, output
        if ignore_band < 0:
            raise ValueError(f"ignore_band must be >= 0, got {ignore_band}")
        self.ignore_band = ignore_band
        asked = {"background_in_mean": background_in_mean, "score_background": score_background}
        asked["flips"] = None if inference is None else inference.flips
        self.protocol = agreed_protocol(protocol, self.vocabulary, asked)
        self.unseen_masks |= self.protocol.allows_unseen_masks
        self.inference = inference or Inference(flips=self.protocol.flips)
        self.silent = self.protocol.silent(self.vocabulary)
        self.segmenter = segmenter(self.vocabulary.num_classes)
        for part in self.segmenter.modules():
            if isinstance(part, PixelLoss):
                part.bind(self.vocabulary)
        self.scores = nn.ModuleDict()
        self.take_over(self.segmenter.learnt_from, "the segmenter's checkpoint")

    def _metric(self) -> SegmentationIoU:
        vocabulary, protocol = self.vocabulary, self.protocol
        return SegmentationIoU(
            vocabulary.num_classes,
            vocabulary.seen,
            vocabulary.unseen,
            background_in_mean=protocol.background_in_mean,
            score_background=protocol.score_background,
            score_seen=not protocol.novel_only,
        )

    def setup(self, stage: str) -> None:
        """Make one metric per stream; fail now if `output` cannot be written.

        Raises:
            ValueError: If the trainer's precision is none that a segmenter computes in.
        """
        check_precision(str(self.trainer.precision))
        super().setup(stage)
        if self.output is not None and stage == "fit":
            check_output(self.output, "segmenter")
            check_saveable(self.segmenter, self.vocabulary)
        for kind in ("val", "test"):
            metrics = [self._metric() for _ in stream_names(self, kind)]
            self.scores[kind] = nn.ModuleList(metrics)

    def learn_by(self, practices: set[str], where: str) -> None:
        """Keep what is done in training, unless a named protocol rules it out.

        Raises:
            ValueError: If it does.
        """
        if self.protocol.name:
            self.protocol.check_training(practices, where)
        super().learn_by(practices, where)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, 3, H, W)`` uint8 RGB to logits ``(B, N, H, W)``."""
        return self.segmenter(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the segmenter's loss."""
        images, labels = batch.images, batch.labels
        if self.augment is not None:
            number = self.trainer.fit_loop.total_batch_idx  # several may make one global step
            images, labels = self.augment(images, labels, number, self.global_rank)
        loss = self.segmenter.loss(images, ignore_borders(labels, self.ignore_band))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch of a validation stream.

        Raises:
            ValueError: If the images are to be scored at their own size, and are not.
        """
        check_own_size(self.protocol, batch)
        self.scores["val"][dataloader_idx].update(self.predict_step(batch, 0), batch.labels)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Score a batch of a test stream, keep the areas of each image, return the label maps.

        Raises:
            ValueError: If the images have not the protocol's size, or not their own.
        """
        check_image_size(self.protocol, batch)
        check_own_size(self.protocol, batch)
        predictions = self.predict_step(batch, 0)
        self.scores["test"][dataloader_idx].update(predictions, batch.labels, batch.indices)
        return predictions

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the label map ``(B, H, W)`` of each image, of classes that may be predicted.

        An image that was padded is seen without its padding, whose label is 0 here.
        """
        images = batch.images
        whole = tuple(images.shape[-2:])
        sizes = sizes_of(batch)
        if set(sizes) <= {whole}:
            return self._label_map(images)
        maps = images.new_zeros(len(images), *whole, dtype=torch.long)
        for image, label_map, (height, width) in zip(images, maps, sizes, strict=True):
            label_map[:height, :width] = self._label_map(image[None, :, :height, :width])[0]
        return maps

    def _label_map(self, images: Tensor) -> Tensor:
        logits = self.inference(self.segmenter, images)
        if self.silent:
            silent = torch.tensor(self.silent, device=logits.device)
            logits = logits.index_fill(1, silent, -torch.inf)
        return logits.argmax(dim=1)

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self.report("val")

    def on_fit_end(self) -> None:
        """Write the segmenter's folder."""
        trainer = self.trainer
        if self.output is not None and trainer.is_global_zero and not trainer.fast_dev_run:
            facts = (self.vocabulary, self.trained_on, self.practices)
            save_segmenter(self.segmenter, self.output, *facts)

    def on_test_start(self) -> None:
        """Say the protocol in words."""
        super().on_test_start()
        if self.protocol.name and self.trainer.is_global_zero:
            bound = self.unseen_masks and not self.protocol.allows_unseen_masks
            said = words(self.protocol, self.vocabulary, self.inference.in_words())
            print(said + BOUND * bound, flush=True)

    def on_test_epoch_end(self) -> None:
        """Write the areas of single images, the table and, last, results.json."""
        metrics = list(self.scores["test"])
        names = stream_names(self, "test")
        images = {n: metric.images() for n, metric in zip(names, metrics, strict=True)}
        write_output(self, IMAGES, pack_images(images, metrics[0].seen, metrics[0].unseen))
        results = self.report("test")
        for name, (indices, _) in images.items():
            results[name]["images"] = len(indices)
        if self.protocol.name:
            self._compare(results)
        write_results(self, results)

    def _compare(self, results: dict[str, dict]) -> None:
        """Write the table, and say whose figures may stand beside these."""
        rows = table(self.protocol, results, *self._row(), self.unseen_masks)
        path = write_output(self, TABLE, rows.encode())
        if self.trainer.is_global_zero:
            for name, scores in results.items():
                beside, reason = comparable(self.protocol, scores["images"], self.unseen_masks)
                found = ", ".join(row.method for row in beside) or "nobody's figures"
                why = f" ({reason})" if reason else ""
                print(f"{name}: comparable are {found}{why}; all rows: {path}", flush=True)

    def _row(self) -> tuple[str, str]:
        """Return the method, how it saw images, and its training data in the words of a table."""
        stream = train_stream(self)
        source = "not given" if stream is None else type(stream).__name__
        masks = ", masks of unseen classes" if self.unseen_masks else ""
        seen = self.inference.in_words()
        return type(self.segmenter).__name__ + (f", {seen}" if seen else ""), source + masks

    def report(self, kind: str) -> dict[str, dict]:
        """Compute, log and reset the scores; those of the first stream also without its name."""
        results = {}
        facts = {**self.protocol.facts(), "classes": self.vocabulary.digest}
        for place, name in enumerate(stream_names(self, kind)):
            metric = self.scores[kind][place]
            scores = metric.compute()
            metric.reset()
            prefixes = [f"{kind}/{name}", kind] if place == 0 else [f"{kind}/{name}"]
            logged = {f"{p}/{LOGGED[key]}": scores[key].float() for key in LOGGED for p in prefixes}
            self.log_dict(logged, sync_dist=True, batch_size=1)
            classes = by_class(scores.pop("per_class"), self.vocabulary)
            choices = {"protocol": facts, "unseen_masks": self.unseen_masks}
            choices["inference"] = self.inference.describe()
            results[name] = {**scores, "per_class": classes, **choices}
        return results
