"""Contact sheets of the first validation batch."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from toy_data import data_module, live_stream, quiet_trainer

from ovseg.callbacks.image_logger import ImageLogger, contact_sheet


def test_sheet_by_hand():
    images = torch.full((1, 3, 1, 3), 90, dtype=torch.uint8)
    labels = torch.tensor([[[0, 1, 255]]])
    sheet = contact_sheet(images, [labels], [(0, 0, 0), (30, 60, 240)])
    expected = [[90] * 3] * 3 + [[45] * 3, [50, 70, 190], [179, 179, 158]]  # (90 + 2 * paint) / 3
    assert sheet.dtype == np.uint8 and sheet[0].tolist() == expected
    large = contact_sheet(images, [labels], [(0, 0, 0), (30, 60, 240)], scale=2)
    assert large.shape == (2, 12, 3) and np.array_equal(large[::2, ::2], sheet)


class Guess(LightningModule):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def predict_step(self, batch, batch_idx):
        return torch.zeros_like(batch.labels)


class Silent(Guess):
    predict_step = LightningModule.predict_step


@pytest.mark.parametrize("module, columns", [(Guess(), 3), (Silent(), 2)])
def test_one_sheet_per_stream(tmp_path, module, columns):
    data = data_module(4, val={"one": live_stream(6), "two": live_stream(2)})
    trainer = quiet_trainer(tmp_path, callbacks=[ImageLogger(count=3, scale=1)])
    trainer.validate(module, data, verbose=False)
    written = {}
    for path in (tmp_path / "images").iterdir():
        with Image.open(path) as sheet:
            written[path.name] = sheet.size
    assert written == {
        "one_000000.png": (32 * columns, 32 * 3),
        "two_000000.png": (32 * columns, 32 * 2),
    }


def test_bad_arguments():
    with pytest.raises(ValueError, match="count and scale must be >= 1, got 0 and 2"):
        ImageLogger(count=0)
