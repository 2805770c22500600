"""The module of stages 1 and 3: nothing to train, samples to write."""

from __future__ import annotations

from lightning.pytorch import LightningModule

from ovseg.structures import Batch
from ovseg.vocabulary import Vocabulary


class DatasetModule(LightningModule):
    """Return completed batches in `predict`; a `ShardWriter` writes them.

    Args:
        vocabulary: The classes (linked from the data).
    """

    def __init__(self, vocabulary: Vocabulary | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Batch:
        """Return the batch: the DataModule has sampled and annotated it."""
        return batch
