"""A callback that keeps what a rank has counted, before the ranks add it up."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import Metric


class DumpCounts(Callback):
    """Write the integer states of all metrics at the end of `test`: ``counts_RANK.json``.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counts = {}
        for name, metric in pl_module.named_modules():
            if isinstance(metric, Metric):
                states = {state: getattr(metric, state) for state in metric._defaults}
                counts |= {
                    f"{name}.{state}": value.tolist()
                    for state, value in states.items()
                    if isinstance(value, torch.Tensor) and not value.is_floating_point()
                }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"counts_{trainer.global_rank}.json").write_text(json.dumps(counts))
