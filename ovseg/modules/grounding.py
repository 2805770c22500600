"""Stage 2: train and score a grounding module."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from ovseg.grounders.base import Grounder, check_precision
from ovseg.grounders.folder import save_grounder, weights_digest
from ovseg.losses import grounding_loss, presence_loss, with_negatives
from ovseg.modules.common import (
    check_output,
    load_start,
    stream_names,
    write_output,
    write_results,
)
from ovseg.modules.grounding_names import AskedNames, embed
from ovseg.modules.grounding_scores import Calibration, GroundingScores, shown
from ovseg.modules.scored import ScoredModule
from ovseg.results import TABLE
from ovseg.results_grounding import published, table
from ovseg.structures import Batch, Entities, FeatureSpec, entity_targets, to_label_map
from ovseg.vocabulary import Vocabulary


class GroundingModule(ScoredModule):
    """Train a grounder on the masks of the entities that the annotator found.

    `fit` ends by writing the grounder folder, which the other stages load. `test` writes
    results.json: per stream the scores of `GroundingScores`, and others' where there are any under
    `published`; beside it results.md, a table of all.

    Args:
        grounder: Makes the grounder from the backbone's feature spec and text width.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler, stepped every training step.
        feature_spec: Linked from the data module.
        text_width: Linked from the data module.
        vocabulary: Linked from the data module.
        dice: Weight of the Dice loss.
        negatives: Names per sample that it does not show, with an empty target; of classes whose
            masks may be learnt alone.
        empty_missed: Give a prompted name of these classes that the annotator did not find an empty
            target too; by default it carries no loss.
        output: Folder of the trained grounder, written at the end of `fit`, and of `validate` with
            `calibrate`.
        start: Grounder folder whose weights and threshold to begin with: to test it, or to go on.
        calibrate: Choose the grounder's threshold on the validation streams; scores of this
            validation are at the threshold before.
        unseen_masks: Allow training on masks of unseen classes: a bound, no zero-shot result.

    Raises:
        ValueError: If the data module has no backbone or vocabulary, or a number is negative.
    """

    def __init__(
        self,
        grounder: Callable[[FeatureSpec, int], Grounder],
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        feature_spec: FeatureSpec | None = None,
        text_width: int | None = None,
        vocabulary: Vocabulary | None = None,
        dice: float = 0.0,
        negatives: int = 0,
        empty_missed: bool = False,
        output: str | None = None,
        start: str | None = None,
        calibrate: bool = False,
        unseen_masks: bool = False,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, vocabulary, unseen_masks)
        if dice < 0 or negatives < 0:
            raise ValueError(f"dice and negatives must be >= 0, got {dice} and {negatives}")
        if feature_spec is None or text_width is None:
            raise ValueError("a grounding module reads a backbone's features: set data.backbone")
        self.dice, self.negatives, self.empty_missed = dice, negatives, empty_missed
        self.output, self.start = output, start
        self.grounder = grounder(feature_spec, text_width)
        self.scores = torch.nn.ModuleDict()
        self._teachable: dict[int, Tensor] = {}  # embeddings of names that may be learnt, by class
        self.calibration = Calibration(self.vocabulary.num_classes) if calibrate else None

    def setup(self, stage: str) -> None:
        """Make the metrics of every stream, load `start`, fail now if `output` cannot be written.

        Raises:
            ValueError: If `start` holds another kind of grounder, one of another backbone, or one
                that was trained with masks of unseen classes.
        """
        super().setup(stage)
        if self.calibration is not None and stage in ("fit", "validate"):
            for name, stream in self.trainer.datamodule.val.items():
                self.learn_from(f"val.{name}", stream)
        for kind in ("val", "test"):
            streams = [GroundingScores(self.vocabulary) for _ in stream_names(self, kind)]
            self.scores[kind] = torch.nn.ModuleList(streams)
        if self.start is not None:
            backbone = self.trainer.datamodule.backbone
            loaded = load_start(self.start, self.grounder, backbone, stage == "fit")
            self.take_over(loaded.learnt_from, f"the grounder in {self.start}")
            self.grounder, self.start = loaded, None  # `test` after `fit` keeps what was learnt
        if self.output is not None and stage in ("fit", "validate"):
            check_output(self.output, "grounder")

    def forward(self, batch: Batch) -> Tensor:
        """Return the probability ``(B, K, H, W)`` of each entity at image size."""
        return _at_size(self.grounder(batch.features, batch.entities), batch)

    def _check(self, batch: Batch, kind: str, number: int | None = None) -> None:
        """Refuse samples without features, and weights of another dtype than theirs.

        Raises:
            ValueError: If a sample has none, or the dtypes differ.
        """
        needed = ("features", "entities", "found")[: 2 if kind == "predict" else 3]
        if lacking := [field for field in needed if getattr(batch, field) is None]:
            stream = kind if number is None else f"{kind}.{stream_names(self, kind)[number]}"
            raise ValueError(
                f"a grounding module reads {', '.join(needed)} of each sample; those of "
                f"data.{stream} come without {', '.join(lacking)}: set data.backbone and use a "
                "stream that has them (LiveStream, ShardStream, PhotographStream), or train a "
                "segmenter"
            )
        check_precision(self.grounder, batch.entities.text)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss over the found entities and the negatives, and that of presence."""
        self._check(batch, "train")
        entities, visible = batch.entities, shown(batch)
        found = visible
        if self.empty_missed:
            missed = entities.valid & ~batch.found
            found = found | (missed & torch.isin(entities.class_ids, self._teachable_ids))
        names = found.shape[1]
        if self.negatives:
            entities = self._with_negatives(entities, self.negatives)
            found = torch.cat([found, entities.valid[:, names:]], dim=1)
        targets, pixels = entity_targets(batch.labels, entities.class_ids)
        batch = batch.replace(features=self.grounder.read(batch.features))
        logits = self.grounder(batch.features, entities)
        loss = grounding_loss(logits, targets, pixels, found, self.dice)
        if self.grounder.learns_presence:
            loss = loss + self._presence_loss(batch, logits[:, :names], visible)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def _presence_loss(self, batch: Batch, logits: Tensor, found: Tensor) -> Tensor:
        """Tell the found names from one of the batch's others each; masks learn nothing by it."""
        names = self._with_negatives(batch.entities, 1)
        absent = Entities(*(x[:, -1:] for x in (names.text, names.class_ids, names.valid)))
        with torch.no_grad():
            others = self.grounder(batch.features, absent)
        logits = torch.cat([logits.detach(), others], dim=1)
        present = self.grounder.presence(batch.features, names, logits)
        targets = F.pad(torch.ones_like(found), (0, 1))
        return presence_loss(present, targets, torch.cat([found, absent.valid], dim=1))

    def _with_negatives(self, entities: Entities, count: int) -> Entities:
        return with_negatives(entities, count, self._teachable, self.global_step)

    def on_fit_start(self) -> None:
        """Embed the names that masks may be learnt of; tell the grounder those of seen classes."""
        backbone, seen = self.trainer.datamodule.backbone, self.vocabulary.seen
        kinds = self.vocabulary.select("all") if self.unseen_masks else seen
        self._teachable = embed(backbone, {i: self.vocabulary[i].name for i in kinds})
        self._teachable_ids = torch.tensor(list(kinds), device=self.device)
        if seen:
            self.grounder.meet(torch.stack([self._teachable[i] for i in seen]))

    def on_test_start(self) -> None:
        """Embed the names that the test asks for."""
        super().on_test_start()
        self._names = AskedNames(self.trainer.datamodule.backbone, self.vocabulary)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch of a validation stream."""
        self._check(batch, "val", dataloader_idx)
        masks = self(batch)
        self.scores["val"][dataloader_idx].update(masks, batch, self.grounder.threshold)
        if self.calibration is not None and not self.trainer.sanity_checking:
            self.calibration.update(masks, batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch of a test stream, and its controls."""
        self._check(batch, "test", dataloader_idx)
        scores, entities = self.scores["test"][dataloader_idx], batch.entities
        batch = batch.replace(features=self.grounder.read(batch.features))
        logits = self.grounder(batch.features, entities)
        scores.update(_at_size(logits, batch), batch, self.grounder.threshold)
        scores.update_controls(batch)
        if not self.grounder.reads_names:
            return
        for how, text in self._names.renamed(entities).items():
            renamed = batch.replace(entities=replace(entities, text=text))
            scores.update_renamed(how, self(renamed), batch, self.grounder.threshold)
        absent = self._names.absent(batch)
        here, others = (
            self.grounder.presence(batch.features, names, found)
            for names, found in (
                (entities, logits),
                (absent, self.grounder(batch.features, absent)),
            )
        )
        scores.update_presence(here, others, absent.valid, batch)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the label map ``(B, H, W)`` of the names of each image."""
        self._check(batch, "predict", dataloader_idx)
        entities = batch.entities
        threshold = self.grounder.threshold
        return to_label_map(self(batch), entities.class_ids, entities.valid, threshold)

    def on_validation_epoch_end(self) -> None:
        """Log the scores; choose the threshold."""
        results = self.report("val")
        miou = torch.tensor([scores["miou"] for scores in results.values()]).nanmean()
        self.log("val/miou", miou, sync_dist=True, prog_bar=True)
        if self.calibration is not None and not self.trainer.sanity_checking:
            self.grounder.threshold = self.calibration.best()

    def report(self, kind: str) -> dict[str, dict]:
        """Compute and log the scores of every stream."""
        results = {}
        for name, scores in zip(stream_names(self, kind), self.scores[kind], strict=True):
            results[name] = scores.compute()
            for key in ("miou", "choice"):
                if not math.isnan(results[name][key]):  # no choice in images of one object
                    self.log(f"{kind}/{name}/{key}", results[name][key], sync_dist=True)
        return results

    def on_test_epoch_end(self) -> None:
        """Write the table and, last, results.json."""
        results = self.report("test")
        for name, stream in self.trainer.datamodule.test.items():
            excluded = getattr(stream, "excluded", 0.0)  # before they came here
            results[name]["excluded"] = 1 - (1 - excluded) * (1 - results[name]["excluded"])
        taught = [self.vocabulary[i] for i in sorted(self.trained_on)]
        tested = {
            "weights": weights_digest(self.grounder),
            "unseen_masks": [c.name for c in taught if c.id in self.vocabulary.unseen],
        }
        for scores in results.values():
            scores.update(tested)
        method = type(self.grounder).__name__
        write_output(self, TABLE, table(results, method, self.vocabulary).encode())
        for row in published(self.vocabulary, results):
            for name in results.keys() & row.columns.keys():
                results[name].setdefault("published", {})[row.label] = row.columns[name]
        write_results(self, results)

    def on_fit_end(self) -> None:
        """Let the grounder know what it has learnt from; write its folder."""
        taught = [self.vocabulary[i].name for i in sorted(self.trained_on)]
        self.grounder.learnt_from = {"trained_on": taught, "practices": sorted(self.practices)}
        self._save()

    def on_validation_end(self) -> None:
        """Write the grounder folder with the threshold that `validate` has chosen."""
        if self.calibration is not None and self.trainer.state.fn == "validate":
            self._save()

    def _save(self) -> None:
        trainer = self.trainer
        if self.output is not None and trainer.is_global_zero and not trainer.fast_dev_run:
            backbone = trainer.datamodule.backbone
            facts = (self.vocabulary, self.trained_on, self.practices)
            save_grounder(self.grounder, self.output, backbone, *facts)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep the threshold too: it is no tensor of the state dict."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["threshold"] = float(self.grounder.threshold)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Restore the threshold."""
        super().on_load_checkpoint(checkpoint)
        self.grounder.threshold = checkpoint.get("threshold", self.grounder.threshold)


def _at_size(logits: Tensor, batch: Batch) -> Tensor:
    """Return probabilities ``(B, K, H, W)`` at the size of the batch's labels."""
    size = batch.labels.shape[-2:]
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False).sigmoid()
