"""What a trained and scored module is, whatever it trains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau

from ovseg.modules.common import check_writable, train_stream, write_results
from ovseg.vocabulary import EVERY, Vocabulary

ORDERED = (
    "; its classes are the same in another order, into the vocabulary's those of MMSegmentation "
    "are brought by tools/import_segmenter.py"
)


class ScoredModule(LightningModule):
    """Base of the modules that `fit` trains and `test` scores on named streams.

    Args:
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler, stepped every training step.
        vocabulary: Linked from the data module.
        unseen_masks: Allow training on masks of unseen classes: a bound, no zero-shot result.

    Raises:
        ValueError: If the data module has no vocabulary.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        vocabulary: Vocabulary | None,
        unseen_masks: bool,
    ) -> None:
        super().__init__()
        if vocabulary is None:
            raise ValueError("the model needs a vocabulary: use a data module that has one")
        self.vocabulary = vocabulary
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.unseen_masks = unseen_masks
        self.trained_on: set[int] = set()
        """Ids of the classes whose true masks it has learnt from."""
        self.practices: set[str] = set()
        """What was done in its training that a protocol may rule out, as `Stream.practices`."""

    def learn_from(self, name: str, stream: Any) -> None:
        """Keep what a stream teaches; refuse masks of unseen classes, unless they are allowed.

        Args:
            name: Of the stream, below "data.".
            stream: One of the data module's.

        Raises:
            ValueError: If it teaches such masks, or something that a protocol rules out.
        """
        taught = getattr(stream, "taught_classes", set)()
        leaked = sorted(taught & set(self.vocabulary.unseen))
        if leaked and not self.unseen_masks:
            raise ValueError(
                f"data.{name} teaches masks of {', '.join(self.vocabulary[i].name for i in leaked)}"
                f", which split {self.vocabulary.split} calls unseen: ask its annotator for seen "
                "classes (classes: seen), or say that this is no zero-shot result "
                "(model.init_args.unseen_masks: true)"
            )
        self.trained_on |= taught
        self.learn_by(getattr(stream, "practices", set)(), f"data.{name}")

    def setup(self, stage: str) -> None:
        """Check the training stream before anything is learnt from it."""
        if stage == "fit":
            self.learn_from("train", train_stream(self))

    def learn_by(self, practices: set[str], where: str) -> None:
        """Keep what is done in training, there or in that of weights that are taken over."""
        self.practices |= practices

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep the classes, whose order is what the weights mean, and what has taught them."""
        checkpoint["classes"] = [c.key for c in self.vocabulary.classes]
        checkpoint["trained_on"] = [self.vocabulary[i].key for i in sorted(self.trained_on)]
        checkpoint["practices"] = sorted(self.practices)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuse weights as `take_over` does."""
        self.take_over(checkpoint, "the checkpoint")

    def take_over(self, learnt: Mapping[str, Any], what: str) -> None:
        """Refuse weights that were trained on other classes, or with masks of unseen ones.

        Args:
            learnt: What is known of their training, as `on_save_checkpoint` keeps it.
            what: What they come from, in words.

        Raises:
            ValueError: If they were; see `take_over_masks` for the latter.
        """
        here = [c.key for c in self.vocabulary.classes]
        there = self._keys(learnt.get("classes", here))
        if there != here:
            pairs = zip_longest(there, here, fillvalue="none")
            number, (theirs, ours) = next(
                (n, pair) for n, pair in enumerate(pairs, start=1) if pair[0] != pair[1]
            )
            raise ValueError(
                f"{what} was trained on {len(there)} classes, vocabulary "
                f"{self.vocabulary.name!r} has {len(here)}; the first that differs is number "
                f"{number}, {theirs} there and {ours} here: set data.vocabulary to that of the "
                f"training{ORDERED if sorted(there) == sorted(here) else ''}"
            )
        names = learnt.get("trained_on", ())
        how = "may have been" if EVERY in names else "was"
        self.take_over_masks(self.vocabulary.taught(names), f"{what} {how}")
        self.learn_by(set(learnt.get("practices", ())), f"{what}'s training")

    def _keys(self, names: Sequence[str]) -> list[str]:
        """Return the keys of classes by any of their words; what names none stays as it is."""
        ids = self.vocabulary.matched(names)
        return [self.vocabulary[i].key if i else name for i, name in zip(ids, names, strict=True)]

    def take_over_masks(self, taught: Collection[int], what: str) -> None:
        """Refuse weights that were trained with masks of unseen classes, unless they are allowed.

        Args:
            taught: Ids of the classes whose masks they have learnt from.
            what: What they come from, and "was" or "may have been", in words.

        Raises:
            ValueError: If they were.
        """
        self.trained_on |= set(taught)
        leaked = sorted(self.trained_on & set(self.vocabulary.unseen))
        if leaked and not self.unseen_masks:
            names = ", ".join(self.vocabulary[i].name for i in leaked)
            raise ValueError(
                f"{what} trained with masks of {names}, which split "
                f"{self.vocabulary.split} calls unseen: test it on its own split, or say that this "
                "is no zero-shot result (model.init_args.unseen_masks: true)"
            )

    @abstractmethod
    def report(self, kind: str) -> dict[str, dict]:
        """Compute, log and return the scores of every stream of "val" or "test"."""

    def on_test_start(self) -> None:
        """Fail before the work if the results cannot be written."""
        check_writable(self.trainer.default_root_dir)

    def on_test_epoch_end(self) -> None:
        """Log the scores and write results.json."""
        write_results(self, self.report("test"))

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its scheduler, stepped once per training step.

        Raises:
            ValueError: If there is no parameter to train.
        """
        parameters = [p for p in self.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(
                f"{type(self).__name__} holds no parameter to train: use validate (with "
                "calibrate) or test"
            )
        made = self.optimizer(parameters)
        if self.lr_scheduler is None:
            return made
        scheduler = self.lr_scheduler(made)
        rule: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):
            rule = {"scheduler": scheduler, "monitor": scheduler.monitor}
        return {"optimizer": made, "lr_scheduler": rule}
