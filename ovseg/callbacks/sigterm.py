"""A scheduler's SIGTERM ends a run at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer


class EndAtSigterm(Callback):
    """End with exit code 143 at SIGTERM; what was not finished is removed as after any error.

    Lightning's own handler takes a note that `predict` never reads, and waits for the other
    processes, which may be anywhere. This one takes its place as soon as that is installed, and
    passes the signal on to the processes that this one has started.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take Lightning's place."""
        end_at_sigterm(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take Lightning's place."""
        end_at_sigterm(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take Lightning's place."""
        end_at_sigterm(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take Lightning's place."""
        end_at_sigterm(trainer)


def end_at_sigterm(trainer: Trainer | None = None) -> Callable[[], None]:
    """Install the handler; return what brings the one before back.

    A process that is forked from this one, as a loader's worker is, ends without a word and without
    Python's own way out, which can wait for ever for threads that it has not inherited.

    Args:
        trainer: Whose processes are ended too.
    """
    process = os.getpid()

    def end(signum: int, frame: object) -> None:
        if os.getpid() != process:
            os._exit(128 + signum)
        print("ovseg: ended by SIGTERM", file=sys.stderr, flush=True)
        launcher = trainer.strategy.launcher if trainer is not None else None
        if launcher is not None:
            launcher.kill(signum)
        sys.exit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = signal.signal(signal.SIGTERM, end)
    return lambda: signal.signal(signal.SIGTERM, before)
