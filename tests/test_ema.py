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


def test_then_test_scores_the_average(tmp_path, monkeypatch):
    """As `test` scores the same checkpoint later."""
    monkeypatch.chdir(tmp_path)
    stage = config()
    keep = {"dirpath": "kept", "every_n_train_steps": 1, "save_last": True}
    path = "lightning.pytorch.callbacks.ModelCheckpoint"
    stage["trainer"]["callbacks"] = [{"class_path": path, "init_args": keep}]
    stage["trainer"].update(enable_checkpointing=True, max_steps=5)
    stage["model"]["init_args"]["optimizer"] = {
        "class_path": "torch.optim.SGD",
        "init_args": {"lr": 0.5},
    }
    scenes = {"class_path": "ovseg.clipart.stream.DrawnScenes", "init_args": {"size": 4, "seed": 5}}
    stage["data"]["init_args"]["test"] = {"drawn": scenes}
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(stage))
    layers = ["-c", "stage.yaml", "-c", str(ROOT / "configs" / "trainer" / "ema.yaml")]
    scored = []
    end = SegmentationModule.on_test_epoch_end

    def record(module):
        scored.append({k: v.clone() for k, v in module.state_dict().items()})
        end(module)

    monkeypatch.setattr(SegmentationModule, "on_test_epoch_end", record)
    assert main(["fit", *layers, "--then_test", "true"]) == 0
    results = (tmp_path / "results.json").read_text()
    assert main(["test", *layers, "--ckpt_path", "kept/last.ckpt"]) == 0
    saved = torch.load("kept/last.ckpt", weights_only=True)
    for weights in scored:
        for key, value in saved["state_dict"].items():
            assert torch.equal(weights[key], value)
    assert not all(torch.equal(saved["current_model_state"][k], v) for k, v in scored[0].items())
    assert len(scored) == 2 and (tmp_path / "results.json").read_text() == results


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
