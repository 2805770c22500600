"""Several streams as one: who comes when, and what a batch of several holds."""

import functools

import numpy as np
import pytest
import torch
from acme.annotator import ColorAnnotator
from acme.backbone import ToyBackbone
from acme.grounder import NearnessGrounder
from acme.segmenter import PixelSegmenter
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from test_datamodule import Recorder
from test_real import config, devkit  # noqa: F401 - a fixture
from toy_data import data_module, live_stream, quiet_trainer, write_dataset

from ovseg.clipart.stream import DrawnScenes
from ovseg.data.base import Stream
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.live import LiveStream
from ovseg.data.mixture import MixtureStream, interleave
from ovseg.data.prompts import TemplatePrompts
from ovseg.data.real import MMSegDataset
from ovseg.data.samplers import TrainSampler
from ovseg.data.shards import ShardStream
from ovseg.modules.grounding import GroundingModule
from ovseg.modules.segmentation import SegmentationModule
from ovseg.structures import Batch
from ovseg.vocabulary import Vocabulary

WORDS = Vocabulary.load("clipart", "1")
SGD = functools.partial(torch.optim.SGD, lr=0.01)


class Plain(Stream):
    """Images of one colour; the label of every pixel is the colour too."""

    def __init__(self, size, value=1, pixels=32):
        self.size, self.value, self.pixels = size, value, pixels
        self.told = []

    def check(self, backbone):
        self.told.append(backbone)

    def to(self, device):
        self.told.append(device)

    def describe(self):
        return {"value": self.value}

    def taught_classes(self):
        return {self.value}

    def __len__(self):
        return self.size

    def __getitem__(self, positions):
        values = torch.tensor([100 * self.value + p for p in positions])[:, None, None]
        square = (len(positions), self.pixels, self.pixels)
        labels = torch.full(square, self.value)
        images = values.to(torch.uint8)[:, None].expand(-1, 3, *square[1:])
        return Batch(torch.tensor(positions), images=images, labels=labels)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def bound(streams, *arguments, **options):
    mixture = MixtureStream(streams, *arguments, **options)
    mixture.bind(WORDS)
    return mixture


def turn_by_turn(weights, size):
    """Seat by seat, after Sainte-Laguë: the next goes to the largest weight / (2 seats + 1)."""
    seats, owners = [0] * len(weights), []
    for _ in range(size):
        quotients = [w / (2 * s + 1) for w, s in zip(weights, seats, strict=True)]
        owners.append(quotients.index(max(quotients)))
        seats[owners[-1]] += 1
    return owners


@pytest.mark.parametrize("weights", [[1], [3, 1], [1, 1, 1], [5, 2, 1], [0.7, 0.2, 0.1]])
def test_streams_take_turns(weights):
    lengths = [4] * len(weights)
    owners = interleave(weights, lengths, 200)
    for number, weight in enumerate(weights):
        share = weight / sum(weights)
        mine = owners == number
        windows = np.lib.stride_tricks.sliding_window_view(mine, 20).sum(axis=1)
        assert abs(windows - 20 * share).max() <= 1 + len(weights) * share
    # quotients that are equal as fractions may differ in their last bits
    if all(w == int(w) for w in weights):
        assert owners.tolist() == turn_by_turn(weights, 200)


def test_an_epoch_holds_every_sample_and_repeats_the_short_for_their_weight():
    cases = [
        ([6, 3], None, [6, 3]),
        ([7, 1, 4], None, [7, 1, 4]),
        ([6, 3], [1.0, 1.0], [6, 6]),
        ([6, 3], [1.0, 2.0], [6, 11]),
        ([6, 3], [4.0, 1.0], [10, 3]),
    ]
    for lengths, weights, expected in cases:
        streams = [Plain(length, number) for number, length in enumerate(lengths)]
        mixture = bound(streams, weights)
        owners, places = mixture._place(range(len(mixture)))
        assert np.bincount(owners).tolist() == expected, (lengths, weights)
        for number, length in enumerate(lengths):
            there = np.bincount(places[owners == number])
            assert len(there) == length and there.min() >= 1 and np.ptp(there) <= 1
    assert len(bound([Plain(6), Plain(3)])) == 9
    assert len(bound([Plain(6), Plain(3)], [1, 1], size=200)) == 200
    assert len(bound([Plain(6), Plain(3)], size=4)) == 4


def test_a_batch_keeps_the_order_that_was_asked_for():
    streams = [Plain(5, 1), Plain(3, 2)]
    mixture = bound(streams, [1, 1])
    positions = [7, 0, 3, 4, 2]
    batch = mixture.complete(mixture[positions], None)
    assert type(batch) is Batch and batch.indices.tolist() == positions
    for row, position in enumerate(positions):
        value, place = position % 2 + 1, position // 2 % (5, 3)[position % 2]
        assert (batch.images[row] == 100 * value + place).all()
        assert (batch.labels[row] == value).all()
    again = mixture.complete(mixture[positions], None)
    assert torch.equal(batch.images, again.images)
    assert len(mixture.complete(mixture[[]], None)) == 0
    assert len(mixture[positions]) == 5


def test_parts_are_told_and_asked():
    streams = [Plain(5, 1), Plain(3, 2)]
    mixture = bound(streams, [2, 1], size=7)
    mixture.check(None)
    mixture.to(torch.device("cpu"))
    for stream in streams:
        assert stream.told == [None, torch.device("cpu")] and stream.vocabulary is WORDS
    assert mixture.taught_classes() == {1, 2}
    facts = mixture.describe()
    assert facts["class_path"] == "ovseg.data.mixture.MixtureStream"
    assert facts["streams"] == [{"value": 1}, {"value": 2}]
    assert facts["weights"] == [2, 1] and facts["size"] == 7
    live = bound([Plain(5), live_stream()])
    with pytest.raises(ValueError, match="set data.backbone"):
        live.check(None)


def test_processes_get_equally_many_batches_of_all_positions():
    mixture = bound([Plain(13), Plain(4)], [1, 1])
    tables = [list(TrainSampler(mixture, 3, 0, rank, 2)) for rank in (0, 1)]
    assert len(tables[0]) == len(tables[1]) == len(mixture) // 6
    drawn = [p for table in tables for batch in table for p in batch]
    assert len(set(drawn)) == len(drawn) and set(drawn) <= set(range(len(mixture)))


def test_grounding_takes_stored_and_live_samples_in_one_batch(dataset):
    backbone = ToyBackbone(forget=0.2)
    stored, live = ShardStream(str(dataset)), live_stream(9, seed=5)
    mixture = bound([stored, live], [1, 1])
    positions = [1, 0, 3, 8, 2]
    batch = mixture.complete(mixture[positions], backbone)
    for row, position in enumerate(positions):
        stream = (stored, live)[position % 2]
        alone = stream.complete(stream[[position // 2]], backbone)
        assert batch.requests[row] == alone.requests[0]
        for name in ("images", "labels"):
            assert torch.equal(getattr(batch, name)[row], getattr(alone, name)[0])
        names = alone.entities.valid.shape[1]
        for name in ("text", "class_ids", "valid"):
            mine, other = getattr(batch.entities, name)[row], getattr(alone.entities, name)[0]
            assert torch.equal(mine[:names], other) and not mine[names:].any()
        assert torch.equal(batch.found[row, :names], alone.found[0])
        for tap, maps in alone.features.maps.items():
            torch.testing.assert_close(batch.features.maps[tap][row], maps[0], rtol=0, atol=1e-5)
        attention = batch.features.attention[row]
        torch.testing.assert_close(attention[:names], alone.features.attention[0])
    assert batch.found.shape == batch.entities.valid.shape == (5, 2)
    assert batch.latents is None and batch.annotation is None


def test_what_a_stream_does_not_have_is_left_out(dataset):
    mixture = bound([ShardStream(str(dataset)), Plain(9)], [1, 1])
    batch = mixture.complete(mixture[[0, 1, 2]], ToyBackbone(forget=0.2))
    assert batch.found is batch.entities is batch.features is None and batch.requests == []
    assert batch.images.shape == (3, 3, 32, 32) and batch.labels.dtype == torch.int64


@pytest.mark.filterwarnings("ignore:.* of the dataset's classes become background")
def test_modules_train_on_mixtures(dataset, devkit, tmp_path):  # noqa: F811 - the fixture
    transforms = [{"type": "Resize", "scale": (32, 32), "keep_ratio": False}]
    real = MMSegDataset(config(devkit), transforms, classes="seen", others="background")
    words = {"vocabulary": "clipart", "split": "1"}
    data = SyntheticDataModule(
        **words, batch_size=4, train=MixtureStream([ShardStream(str(dataset)), real], [2, 1])
    )
    model = SegmentationModule(PixelSegmenter, SGD, vocabulary=data.vocabulary)
    trainer = quiet_trainer(tmp_path, max_steps=2)
    trainer.fit(model, data)
    assert trainer.global_step == 2 and trainer.callback_metrics["train/loss"] > 0

    annotator = ColorAnnotator("seen")
    live = LiveStream(TemplatePrompts(), annotator, 8, seed=1)
    data = data_module(4, train=MixtureStream([ShardStream(str(dataset)), live]))
    facts = {"feature_spec": data.feature_spec, "text_width": data.text_width}
    model = GroundingModule(NearnessGrounder, SGD, vocabulary=data.vocabulary, **facts)
    trainer = quiet_trainer(tmp_path, max_steps=2)
    trainer.fit(model, data)
    assert trainer.global_step == 2 and trainer.callback_metrics["train/loss"] > 0


def test_training_on_a_mixture_resumes_inside_an_epoch(tmp_path):
    def run(steps, checkpoint=None):
        mixture = MixtureStream([live_stream(12), live_stream(5, seed=3)], [1, 1])
        data, module = data_module(4, train=mixture, num_workers=1), Recorder()
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4)
        trainer = quiet_trainer(
            tmp_path, max_steps=steps, enable_checkpointing=True, callbacks=[saver]
        )
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return [(b.indices.tolist(), b.requests) for _, _, b in module.seen]

    straight = run(9)
    assert len(straight) == 9  # of 5 batches per epoch
    assert run(4) + run(9, tmp_path / "step=4.ckpt") == straight


def test_yaml_makes_a_mixture(dataset):
    parser = ArgumentParser()
    parser.add_argument("--train", type=Stream)
    streams = [
        {"class_path": "ovseg.data.shards.ShardStream", "init_args": {"path": str(dataset)}},
        {"class_path": "ovseg.clipart.stream.DrawnScenes", "init_args": {"size": 4, "seed": 1}},
    ]
    made = {
        "class_path": "ovseg.data.mixture.MixtureStream",
        "init_args": {"streams": streams, "weights": [3, 1]},
    }
    mixture = parser.instantiate(parser.parse_object({"train": made})).train
    assert [type(stream) for stream in mixture.streams] == [ShardStream, DrawnScenes]
    mixture.bind(WORDS)
    assert len(mixture) == 15  # 11 come before the last of 4 is due


def test_a_fresh_stream_goes_on_in_the_next_epoch():
    live = live_stream(4, fresh=True)
    mixture = bound([live, Plain(3)], [2, 1], size=6)
    assert mixture.fresh and not bound([Plain(3)]).fresh
    owners, places = mixture._place(range(18))
    assert owners.tolist() == [0, 1, 0] * 6
    assert places[owners == 0].tolist() == list(range(12))
    assert places[owners == 1].tolist() == [0, 1, 2] * 2
    batch = mixture[[17, 6]]
    assert [r.index for r in batch.parts[0].requests] == [11, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "a mixture needs streams"),
        (([Plain(3)], [1, 2]), "1 streams take as many weights, got 2"),
        (([Plain(3), Plain(3)], [1, 0]), "weights must be positive"),
        (([Plain(3)], [float("nan")]), "weights must be positive"),
        (([Plain(3)], None, 0), "size must be >= 1 or null, got 0"),
        (([Plain(3), Plain(0)],), r"stream 1 of the mixture \(Plain\) holds no sample"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        bound(*arguments)


def test_images_of_two_sizes_make_no_batch():
    mixture = bound([Plain(3), Plain(3, pixels=16)])
    message = r"images of 32 x 32 \(Plain\), 16 x 16 \(Plain\) pixels make no batch: bring"
    with pytest.raises(ValueError, match=message):
        mixture.complete(mixture[[0, 1]], None)


def test_only_what_is_not_repeated_can_be_scored(tmp_path):
    streams = [DrawnScenes(4, seed=1), DrawnScenes(2, seed=2)]
    for weights, size, repeats in ((None, None, False), ([1, 1], None, True), ([1, 1], 4, False)):
        mixture = bound(streams, weights, size)
        assert mixture.repeats == repeats
    nested = bound([DrawnScenes(9, seed=1), MixtureStream(streams, [1, 1])])
    assert nested.repeats
    data = SyntheticDataModule("clipart", "1", 3, test={"mixed": MixtureStream(streams, [1, 1])})
    model = SegmentationModule(PixelSegmenter, SGD, vocabulary=data.vocabulary)
    with pytest.raises(ValueError, match="stream 'mixed' may hold a sample twice"):
        quiet_trainer(tmp_path).test(model, data, verbose=False)
