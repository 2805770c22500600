"""Training batches that are completed one ahead of their use."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_datamodule import Recorder
from toy_data import data_module, live_stream, quiet_trainer

from ovseg.data.ahead import Ahead
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.structures import Batch

CPU = torch.device("cpu")


def batches(count=4):
    return [Batch(torch.tensor([number])) for number in range(count)]


def test_a_batch_is_made_while_the_one_before_is_used():
    started = [threading.Event() for _ in range(4)]

    def complete(batch):
        number = int(batch.indices)
        started[number].set()
        return batch.replace(timesteps=10 * batch.indices)

    seen = []
    for number, batch in enumerate(Ahead(CPU).each(complete, batches())):
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
        for batch in Ahead(CPU).each(complete, batches()):
            seen.append(int(batch.indices))
    assert seen == [0, 1]
    assert list(Ahead(CPU).each(complete, [])) == []


def broken(number):
    """Return batches of which one cannot be loaded."""
    yield from batches(number)
    raise OSError("no more")


@pytest.mark.parametrize("bad, error", [(9, "no more"), (1, "completing")])
def test_an_error_of_the_loader_comes_after_the_batch_before(bad, error):
    """And after that batch's own, as when each is completed when it is due."""

    def complete(batch):
        if int(batch.indices) == bad:
            raise ValueError("completing")
        return batch

    seen = []
    with pytest.raises((OSError, ValueError), match=error):
        for batch in Ahead(CPU).each(complete, broken(2)):
            seen.append(int(batch.indices))
    assert seen == [0, 1][:bad]


class Stream:
    """A stream by its name alone: who waits for whom, and where batches are completed."""

    log: list[tuple]

    def __init__(self, name):
        self.name = name

    def wait_stream(self, other):
        self.log.append((self.name, "waits for", other.name))

    def wait_event(self, event):
        self.log.append((self.name, "waits for", event))

    def record_event(self):
        return f"event of {self.name}"


@pytest.fixture
def streams(monkeypatch):
    """Without a GPU: a current stream and one on the side."""
    main, local = Stream("main"), threading.local()

    def current(device=None):
        return getattr(local, "stream", main)

    @contextmanager
    def entered(stream):
        local.stream = stream
        yield
        local.stream = main

    log: list[tuple] = []
    monkeypatch.setattr(Stream, "log", log, raising=False)
    monkeypatch.setattr(torch.cuda, "current_stream", current)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    side = Ahead(CPU)
    side._stream = Stream("side")
    return side, lambda batch: log.append((current().name, int(batch.indices))) or batch, log


def test_all_is_completed_on_one_stream_and_waited_for(streams):
    side, complete, log = streams
    assert [int(b.indices) for b in side.each(complete, batches(2))] == [0, 1]
    assert log[0] == ("side", "waits for", "main")  # before anything is completed
    assert sorted(log[1:], key=str) == sorted(
        [("side", 0), ("side", 1), *[("main", "waits for", "event of side")] * 2], key=str
    )
    log.clear()
    assert int(side.now(complete, batches()[3]).indices) == 3  # validation
    side.end()
    assert log == [
        ("side", "waits for", "main"),
        ("side", 3),
        ("main", "waits for", "event of side"),
        ("main", "waits for", "side"),
    ]


@pytest.fixture
def ahead(monkeypatch):
    """The CPU's training is given its batches as a GPU's is, without the CUDA stream."""
    monkeypatch.setattr(SyntheticDataModule, "_makes_ahead", property(lambda data: data.ahead))
    counts, now, end = Counter(), Ahead.now, Ahead.end
    monkeypatch.setattr(Ahead, "now", lambda *args: counts.update(["now"]) or now(*args))
    monkeypatch.setattr(Ahead, "end", lambda *args: counts.update(["end"]) or end(*args))
    return counts


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
    validated = [name for name in calls if not name.startswith("ahead")]
    assert validated and ahead == {"now": len(validated), "end": 1}
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
    handed = Ahead(CPU)._hand_over(batch, "kernels")
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

    made = Ahead(device).each(complete, batches(8))
    assert [int(batch.images) for batch in made] == [n * 4096**2 for n in range(8)]
