"""Keep pictures of a test for the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ovseg.report.pictures import Picture
from ovseg.structures import Batch


class TestPictures(Callback):
    """Write the first images of every test stream, the truth and the prediction as PNGs.

    ``pictures/STREAM/INDEX.{json,image.png,truth.png,prediction.png}`` in the trainer's
    `default_root_dir`, label maps as class ids; `ovseg.report.pictures` reads them. The prediction
    is the label map that the module's `predict_step` returns.

    Args:
        count: Images per stream, from its first batches.

    Raises:
        ValueError: If count is not positive.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(self, count: int = 8) -> None:
        if count < 1:
            raise ValueError(f"count must be >= 1, got {count}")
        self.count = count

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write what this batch has of the first images."""
        rows = [row for row, index in enumerate(batch.indices.tolist()) if index < self.count]
        if not rows:
            return
        stream = list(trainer.datamodule.test)[dataloader_idx]
        folder = Path(trainer.default_root_dir) / "pictures" / stream
        predictions = pl_module.predict_step(batch, batch_idx)
        for row in rows:
            picture = Picture.of(batch, row, truth=batch.labels[row], prediction=predictions[row])
            picture.save(folder, f"{int(batch.indices[row]):06d}")
