"""Pictures of a test."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from toy_data import data_module, live_stream, quiet_trainer

from ovseg.callbacks.pictures import TestPictures
from ovseg.report.pictures import load_pictures


class Ones(LightningModule):
    def test_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def predict_step(self, batch, batch_idx):
        return torch.ones_like(batch.labels)


def test_first_images_of_every_stream(tmp_path):
    streams = {"one": live_stream(7), "two": live_stream(2, seed=1)}
    data = data_module(3, test=streams)
    trainer = quiet_trainer(tmp_path, callbacks=[TestPictures(count=4)])
    trainer.test(Ones(), data, verbose=False)
    one, two = (load_pictures(tmp_path / "pictures" / name) for name in ("one", "two"))
    assert (len(one), len(two)) == (4, 2)
    vocabulary = data.vocabulary
    for index, picture in enumerate(one):
        request = streams["one"].prompts.request(index, vocabulary, 0)
        assert picture.caption == request.prompt
        assert picture.image.shape == (32, 32, 3)
        assert set(np.unique(picture.maps["truth"])) <= {0, *(e.class_id for e in request.entities)}
        assert (picture.maps["prediction"] == 1).all()


def test_bad_count():
    with pytest.raises(ValueError, match="count must be >= 1, got 0"):
        TestPictures(count=0)
