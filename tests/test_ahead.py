"""Training batches that are completed one ahead of their use."""

import threading

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_datamodule import Recorder
from toy_data import data_module, live_stream, quiet_trainer

from ovseg.data.ahead import Ahead
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.structures import Batch


def batches(count=4):
    return [Batch(torch.tensor([number])) for number in range(count)]


def test_a_batch_is_made_while_the_one_before_is_used():
    started = [threading.Event() for _ in range(4)]

    def complete(batch):
        number = int(batch.indices)
        started[number].set()
        return batch.replace(timesteps=10 * batch.indices)

    seen = []
    for number, batch in enumerate(Ahead(complete, torch.device("cpu"))(batches())):
        assert number == 3 or started[number + 1].wait(60)  # without anybody asking for it
        assert not any(event.is_set() for event in started[number + 2 :])  # and no further one
        seen.append((int(batch.indices), int(batch.timesteps)))
    assert seen == [(0, 0), (1, 10), (2, 20), (3, 30)]


def test_an_error_comes_with_its_own_batch():
    def complete(batch):
        if int(batch.indices) == 2:
            raise ValueError("the third one")
        return batch

    seen = []
    with pytest.raises(ValueError, match="the third one"):
        for batch in Ahead(complete, torch.device("cpu"))(batches()):
            seen.append(int(batch.indices))
    assert seen == [0, 1]
    assert list(Ahead(complete, torch.device("cpu"))([])) == []


@pytest.fixture
def ahead(monkeypatch):
    """The CPU's training is given its batches as a GPU's is, without the CUDA stream."""
    monkeypatch.setattr(SyntheticDataModule, "_makes_ahead", property(lambda data: data.ahead))


def train(folder, ahead, steps=9, checkpoint=None, workers=0):
    """Train on fresh samples, validate in the middle of each epoch; return module and backbone."""
    saver = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=5)
    options = {"enable_checkpointing": True, "callbacks": [saver], "val_check_interval": 2}
    module = Recorder()
    data = data_module(
        2,
        train=live_stream(8, fresh=True),
        val={"one": live_stream(5, seed=9)},
        num_workers=workers,
        ahead=ahead,
    )
    calls = []
    sample = data.backbone.sample

    def recorded(requests):
        calls.append(threading.current_thread().name)
        return sample(requests)

    data.backbone.sample = recorded
    trainer = quiet_trainer(folder, max_steps=steps, **options)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module, calls


@pytest.mark.parametrize("workers", [0, 2])
def test_training_sees_the_same_and_resumes_the_same(tmp_path, ahead, workers):
    plain, calls = train(tmp_path / "plain", ahead=False, workers=workers)
    assert not any(name.startswith("ahead") for name in calls)
    straight, calls = train(tmp_path / "ahead", ahead=True, workers=workers)
    assert sum(name.startswith("ahead") for name in calls) >= 9  # every training batch
    assert any(not name.startswith("ahead") for name in calls)  # validation
    assert len(plain.seen) == len(straight.seen)
    for (stage, key, batch), (other_stage, other_key, other) in zip(
        plain.seen, straight.seen, strict=True
    ):
        assert (stage, key, batch.requests) == (other_stage, other_key, other.requests)
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.features.maps["fine"], other.features.maps["fine"])
        assert not other.features.maps["fine"].requires_grad
    first, _ = train(tmp_path, True, 5, workers=workers)
    rest, _ = train(tmp_path, True, 9, tmp_path / "step=5.ckpt", workers)
    assert first.indices("train") + rest.indices("train") == straight.indices("train")


def test_without_a_gpu_nothing_is_made_ahead(tmp_path):
    _, calls = train(tmp_path, ahead=True, steps=2)
    assert calls and not any(name.startswith("ahead") for name in calls)


def test_tensors_that_stay_on_the_cpu_are_handed_over_too(monkeypatch):
    """Without a GPU: streams and events by stand-ins, and no tensor may be asked for a stream."""

    class Current:
        waited = []

        def wait_event(self, event):
            self.waited.append(event)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Current())
    batch = batches(1)[0].replace(timesteps=torch.tensor([124.0]))
    handed = Ahead(lambda batch: batch, torch.device("cpu"))._hand_over(batch, "kernels")
    assert handed is batch and Current.waited == ["kernels"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: a CUDA stream of its own")
def test_on_a_gpu_the_model_waits_for_what_it_is_given():
    device = torch.device("cuda")

    def complete(batch):
        slow = torch.randn(4096, 4096, device=device)
        for _ in range(20):
            slow = slow @ slow
            slow = slow / slow.norm()
        on_cpu = torch.tensor([124.0])
        return batch.replace(images=(slow * 0 + batch.indices).sum(), timesteps=on_cpu)

    made = Ahead(complete, device)(batches(8))
    assert [int(batch.images) for batch in made] == [n * 4096**2 for n in range(8)]
