"""Look at the masks while they are learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from PIL import Image
from torch import Tensor

from ovseg.report.pictures import Palette, colorize
from ovseg.structures import Batch


class ImageLogger(Callback):
    """Write a contact sheet of the first batch of every validation stream to the log directory.

    ``images/STREAM_STEP.png``: a row per sample, from left to right the image, the true labels and
    those that the module's `predict_step` returns (if it has one), over the image.

    Args:
        count: Most rows.
        scale: Enlarge pixels this many times.
    """

    def __init__(self, count: int = 8, scale: int = 2) -> None:
        if count < 1 or scale < 1:
            raise ValueError(f"count and scale must be >= 1, got {count} and {scale}")
        self.count, self.scale = count, scale

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the sheet of a first batch."""
        if batch_idx > 0 or trainer.sanity_checking:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "images"  # on all ranks
        if not trainer.is_global_zero:
            return
        maps = [batch.labels]
        if is_overridden("predict_step", pl_module):
            maps.append(pl_module.predict_step(batch, batch_idx))
        stream = list(trainer.datamodule.val)[dataloader_idx]
        sheet = contact_sheet(
            batch.images[: self.count],
            [labels[: self.count] for labels in maps],
            trainer.datamodule.vocabulary.palette,
            self.scale,
        )
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(folder / f"{stream}_{trainer.global_step:06d}.png")


def contact_sheet(
    images: Tensor, maps: list[Tensor], palette: Palette, scale: int = 1
) -> np.ndarray:
    """Lay images and label maps side by side.

    Args:
        images: ``(B, 3, H, W)`` uint8 RGB.
        maps: Each ``(B, H, W)`` class ids, 255 = ignore.
        palette: RGB by class id.
        scale: Enlarge pixels this many times.

    Returns:
        ``(B * H * scale, (1 + number of maps) * W * scale, 3)`` uint8.
    """
    pictures = images.permute(0, 2, 3, 1).cpu().numpy()
    columns = [pictures]
    for labels in maps:
        ids = labels.to(torch.uint8).cpu().numpy()
        paint = np.stack([colorize(row, palette) for row in ids])
        # background shows the image darkened, so that thin masks stand out
        blend = (pictures + 2 * paint.astype(np.uint16)) // 3
        columns.append(np.where(ids[..., None] > 0, blend, pictures // 2).astype(np.uint8))
    table = np.concatenate(columns, axis=2)
    sheet = table.reshape(-1, *table.shape[2:])
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)
