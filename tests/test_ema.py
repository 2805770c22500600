"""Lightning's moving average of the weights, on a segmenter."""

import functools
import json

import pytest
import torch
import yaml
from acme.segmenter import PixelSegmenter
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from test_cli import ROOT, config
from toy_data import quiet_trainer

from ovseg.__main__ import main
from ovseg.clipart.stream import DrawnScenes
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.modules.segmentation import SegmentationModule

DECAY, STEPS = 0.7, 5
SGD = functools.partial(torch.optim.SGD, lr=0.5)


class Record(Callback):
    """Keep the weights after each step."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, module, *_):
        self.weights.append({k: v.clone() for k, v in module.state_dict().items()})


def test_the_average_is_what_is_saved_and_scored(tmp_path):
    torch.manual_seed(0)
    data = SyntheticDataModule(
        "clipart",
        "1",
        4,
        train=DrawnScenes(8, 0, classes="seen"),
        test={"drawn": DrawnScenes(4, 5)},
    )
    model = SegmentationModule(PixelSegmenter, SGD, vocabulary=data.vocabulary)
    record = Record()
    callbacks = [record, EMAWeightAveraging(decay=DECAY), ModelCheckpoint(tmp_path, "last")]
    options = {"max_steps": STEPS, "callbacks": callbacks, "enable_checkpointing": True}
    trainer = quiet_trainer(tmp_path, **options)
    trainer.fit(model, data)
    # torch's: the first update copies the weights
    expected = record.weights[0]
    for weights in record.weights[1:]:
        expected = {k: DECAY * expected[k] + (1 - DECAY) * v for k, v in weights.items()}
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert len(record.weights) == STEPS
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[key])
        torch.testing.assert_close(saved[key], expected[key])
        assert not torch.equal(value, record.weights[-1][key])
    trainer.test(model, data, verbose=False)
    averaged = json.loads((tmp_path / "results.json").read_text())
    fresh = SegmentationModule(PixelSegmenter, SGD, vocabulary=data.vocabulary)
    fresh.load_state_dict(saved)
    quiet_trainer(tmp_path / "again").test(fresh, data, verbose=False)
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == averaged


def test_the_shipped_layer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(config()))
    layer = ROOT / "configs" / "trainer" / "ema.yaml"
    assert main(["fit", "-c", "stage.yaml", "-c", str(layer)]) == 0


@pytest.mark.parametrize("buffers", [True, False])
def test_the_average_takes_batch_norm_with_it(buffers, tmp_path):
    class Normed(PixelSegmenter):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            self.layers.insert(0, torch.nn.BatchNorm2d(3))

    data = SyntheticDataModule("clipart", "1", 4, train=DrawnScenes(8, 0, classes="seen"))
    model = SegmentationModule(Normed, SGD, vocabulary=data.vocabulary)
    record = Record()
    average = EMAWeightAveraging(decay=0.5, use_buffers=buffers)
    quiet_trainer(tmp_path, max_steps=2, callbacks=[record, average]).fit(model, data)
    key = "segmenter.layers.0.running_mean"
    one, two = (weights[key] for weights in record.weights)
    found = model.state_dict()[key]
    if buffers:
        torch.testing.assert_close(found, (one + two) / 2)
    else:
        torch.testing.assert_close(found, two)
