"""The DataModule inside a real Trainer: which batch comes from where, and resuming."""

import pytest
import torch
from acme.backbone import ToyBackbone
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from toy_data import data_module, live_stream, quiet_trainer, write_dataset

from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.samplers import shuffled_batches
from ovseg.data.shards import ShardStream
from ovseg.modules.dataset import DatasetModule


class Recorder(LightningModule):
    """Keep what every step was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(("train", self.current_epoch, batch))
        return self.weight * batch.features.maps["fine"].mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen.append(("val", dataloader_idx, batch))

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen.append(("test", dataloader_idx, batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def indices(self, stage):
        return [(key, batch.indices.tolist()) for s, key, batch in self.seen if s == stage]


def test_fit_and_test_take_the_right_stream(tmp_path):
    val = {"small": live_stream(2, seed=1), "large": live_stream(5, seed=2)}
    data = data_module(4, train=live_stream(10), val=val, test={"only": live_stream(6, seed=3)})
    module = Recorder()
    quiet_trainer(tmp_path, max_epochs=2).fit(module, data)
    train = [(e, b) for e in (0, 1) for b in shuffled_batches(10, 4, 0, e)]
    assert module.indices("train") == train
    sanity_and_epochs = 3 * [(0, [0, 1]), (1, [0, 1, 2, 3]), (1, [4])]
    assert module.indices("val") == sanity_and_epochs
    quiet_trainer(tmp_path).test(module, data, verbose=False)
    assert module.indices("test") == [(0, [0, 1, 2, 3]), (0, [4, 5])]
    for stage, key, batch in module.seen:
        streams = {"train": [data.train], "val": list(val.values())}
        stream = streams.get(stage, [data.test["only"]])[key if stage == "val" else 0]
        assert batch.requests == stream[batch.indices.tolist()].requests
        assert batch.features is not None and not batch.features.maps["fine"].requires_grad


def test_first_batch_live_equals_first_batch_stored(tmp_path):
    write_dataset(tmp_path / "set")
    batches = []
    for stream in (live_stream(), ShardStream(str(tmp_path / "set"))):
        module = Recorder()
        data = data_module(4, train=stream)
        quiet_trainer(tmp_path, max_steps=1).fit(module, data)
        batches.append(module.seen[0][2])
    live, stored = batches
    assert live.requests == stored.requests
    for name in ("indices", "images", "labels", "found", "latents"):
        assert torch.equal(getattr(live, name), getattr(stored, name)), name
    for tap, maps in live.features.maps.items():
        torch.testing.assert_close(stored.features.maps[tap], maps, rtol=0, atol=1e-5)
    assert torch.equal(live.entities.text, stored.entities.text)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 12}])
@pytest.mark.parametrize("stop", [2, 4, 7])  # of 4 batches per epoch: inside, at the end, later
def test_resumed_training_sees_the_same_batches(tmp_path, workers, limits, stop):
    straight = run(tmp_path / "straight", stop, limits, workers)
    assert len(straight) == 12 and len({epoch for epoch, _ in straight}) == 3
    first = run(tmp_path, stop, {**limits, "max_steps": stop}, workers)
    assert torch.load(tmp_path / "stop.ckpt", weights_only=True)["global_step"] == stop
    second = run(tmp_path, stop, limits, workers, tmp_path / "stop.ckpt")
    assert first + second == straight


def run(folder, stop, limits, workers=0, checkpoint=None, batch_size=4):
    """Train on 19 samples; return (epoch, positions) of every batch."""
    saver = ModelCheckpoint(folder, filename="stop", every_n_train_steps=stop)
    trainer = quiet_trainer(folder, enable_checkpointing=True, callbacks=[saver], **limits)
    data = data_module(batch_size, train=live_stream(19), num_workers=workers)
    module = Recorder()
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module.indices("train")


def test_resuming_with_other_batches_is_refused(tmp_path):
    run(tmp_path, 2, {"max_epochs": 3, "max_steps": 2})
    with pytest.raises(ValueError, match="with 4 batches per epoch and process, now there are 6"):
        run(tmp_path, 2, {"max_epochs": 3}, checkpoint=tmp_path / "stop.ckpt", batch_size=3)


def test_links_for_the_model():
    data = data_module()
    assert data.vocabulary.split == "1" and data.vocabulary_name == "clipart"
    assert data.feature_spec == ToyBackbone().feature_spec and data.text_width == 8
    bare = SyntheticDataModule("voc", 2)
    assert bare.feature_spec is None and bare.text_width is None and bare.vocabulary.split == "2"


def test_backbone_and_annotator_are_frozen_and_not_saved(tmp_path):
    data = data_module(train=live_stream())
    data.backbone.extra = torch.nn.Linear(2, 2)
    module = Recorder()
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(module, data)
    assert not data.backbone.extra.weight.requires_grad and not data.backbone.training
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert list(saved["state_dict"]) == ["weight"]


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_stage_without_its_stream(tmp_path, stage):
    needed = {"fit": "train", "validate": "val"}.get(stage, stage)
    module = DatasetModule() if stage == "predict" else Recorder()
    with pytest.raises(ValueError, match=f"`{stage}` needs a stream: set data.{needed}"):
        getattr(quiet_trainer(tmp_path, max_steps=1), stage)(module, datamodule=data_module())


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"threads": 0}, "threads must be >= 1 or null, got 0"),
        ({"split": "9"}, "no split '9'"),
        ({"vocabulary": "coc"}, "no vocabulary 'coc'"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        SyntheticDataModule(**{"vocabulary": "clipart", **arguments})


def test_too_few_samples_for_a_batch(tmp_path):
    with pytest.raises(ValueError, match="2 training samples give no batch of 3"):
        quiet_trainer(tmp_path, max_steps=1).fit(Recorder(), data_module(train=live_stream(2)))
