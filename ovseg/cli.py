"""The four verbs that are LightningCLI's own."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning.pytorch.loggers import CSVLogger

from ovseg.callbacks.sigterm import EndAtSigterm, end_at_sigterm
from ovseg.modules.grounding import GroundingModule
from ovseg.modules.segmentation import SegmentationModule
from ovseg.report.terminal import show_grounder, show_segmenter
from ovseg.results import RESULTS
from ovseg.resume import check_checkpoint

LINKS = ("vocabulary", "feature_spec", "text_width")
"""Facts of the data that a model must agree with; never a choice, because a link overrides."""

DESCRIPTIONS = {
    "fit": "Train: --config names model (grounding module or segmenter), data and trainer.",
    "validate": "Score on the validation streams of --config.",
    "test": "Score on the test streams of --config; results.json goes to trainer.default_root_dir.",
    "predict": "Write the samples of --config's predict stream (a shard writer is a callback).",
}


class SaveConfigInFit(SaveConfigCallback):
    """Save the configuration in `fit` only: that of another verb does not load in `fit`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save when training starts."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class CLI(LightningCLI):
    """LightningCLI with the links from data to model, and quiet defaults."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what the data decides; a model without such an argument is skipped."""
        for name in LINKS:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        parser.add_argument(
            "--then_test",
            type=bool,
            default=False,
            help="run `test` too when `fit` or `validate` has ended, in the same processes",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Refuse a checkpoint that is none before it is asked for hyperparameters."""
        super().parse_arguments(parser, args)
        check_checkpoint(self.config[self.config.subcommand].get("ckpt_path"))

    def before_instantiate_classes(self) -> None:
        """Keep predictions out of memory; they are written as they come."""
        if self.subcommand == "predict":
            self.config.predict.return_predictions = False

    def instantiate_trainer(self, **kwargs) -> Trainer:
        """Log to CSV files in `fit`, nowhere else, unless a logger is configured."""
        config = self._get(self.config_init, "trainer")
        if config.get("logger") is None:
            root = config.get("default_root_dir") or "."
            kwargs["logger"] = CSVLogger(root, name="logs") if self.subcommand == "fit" else False
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Go on with `test` if that is asked for, of what the training has ended with."""
        self._then_test()

    def after_validate(self) -> None:
        """Go on with `test` if that is asked for."""
        self._then_test()

    def _then_test(self) -> None:
        if self._get(self.config, "then_test"):
            if self.trainer.world_size > 1:  # statistics of the other ranks differ a little
                state = self.model.state_dict() if self.trainer.is_global_zero else None
                self.model.load_state_dict(self.trainer.strategy.broadcast(state))
            verbose = not self._has_tables()
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=verbose)
            self.after_test()

    def _has_tables(self) -> bool:
        """Whether a test ends with tables of ours, which say more than Lightning's."""
        scored = isinstance(self.model, SegmentationModule | GroundingModule)
        return scored and not self.trainer.fast_dev_run

    def before_test(self) -> None:
        """Leave out Lightning's table where ours follow, and what only goes on in `fit`."""
        warnings.filterwarnings("ignore", message="The dirpath has changed from")
        if self._has_tables():
            self.config_init.test.verbose = False

    def after_test(self) -> None:
        """Print the tables of what was scored."""
        model, path = self.model, Path(self.trainer.default_root_dir) / RESULTS
        if not self._has_tables() or not self.trainer.is_global_zero:
            return
        results = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(model, SegmentationModule):
            show_segmenter(results, model.vocabulary)
        else:
            show_grounder(results, type(model.grounder).__name__, model.vocabulary)

    def after_predict(self) -> None:
        """Go on while a writer wants more shards, to meet a quota."""
        while any(getattr(callback, "wants_more", False) for callback in self.trainer.callbacks):
            self.trainer.predict(self.model, datamodule=self.datamodule, return_predictions=False)

    def before_predict(self) -> None:
        """Make generated bytes reproducible on a GPU."""
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def run(argv: list[str]) -> None:
    """Run one of LightningCLI's verbs.

    Args:
        argv: Verb and its arguments.

    Raises:
        Exception: Whatever the configuration, a constructor or a stage raises, unprinted.
    """
    quiet()
    again = end_at_sigterm()
    raises = {"exit_on_error": False}
    kwargs = {verb: {**raises, "description": text} for verb, text in DESCRIPTIONS.items()}
    before = sys.argv
    if sys.argv[1:] != argv:  # a launcher of more processes runs the command line again
        sys.argv = [str(Path(__file__).with_name("__main__.py")), *argv]
    try:
        CLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveConfigInFit,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"enable_model_summary": False, "callbacks": EndAtSigterm()},
            parser_kwargs={**raises, **kwargs},
            load_from_checkpoint_support=False,  # it hides hyperparameters in the checkpoint
        )
    finally:
        sys.argv = before
        again()


@atexit.register
def leave_process_group() -> None:
    """Join the threads of a process group: one that lets go of a tensor after Python ends aborts.

    Lightning leaves the groups of NCCL alone, not those of gloo.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def quiet() -> None:
    """Silence the third parties' hints and the warnings that say nothing about the user's run."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of how Lightning uses it
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*callbacks used to create the checkpoint need to be provided.*WeightAveraging.*",
        ".*the WeightAveraging callback, but loading a checkpoint outside the 'fit' stage.*",
        ".*`torch.jit.script` is deprecated.*",
        ".*isinstance.treespec, LeafSpec.* is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
