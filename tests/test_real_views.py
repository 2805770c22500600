"""Transforms of ovseg.data.real: what random ones draw, and which a protocol refuses."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from acme.segmenter import PixelSegmenter
from lightning.pytorch.callbacks import ModelCheckpoint
from test_real import config, devkit, stream, truth  # noqa: F401 - the fixture
from toy_data import quiet_trainer

from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.mixture import MixtureStream
from ovseg.data.real import MMSegDataset
from ovseg.data.samplers import shuffled_batches
from ovseg.modules.segmentation import SegmentationModule
from ovseg.vocabulary import Vocabulary

SGD = functools.partial(torch.optim.SGD, lr=0.1)
CROP = [{"type": "RandomCrop", "crop_size": (4, 6)}]


def test_draws_are_those_of_seed_epoch_and_image(devkit):  # noqa: F811 - the fixture
    real = stream(devkit, transforms=CROP)
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    views = real[range(6)].labels
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(4)
    for n, view in enumerate(views):
        assert torch.equal(real[[n]].labels[0], view)  # whatever the batch
        windows = np.lib.stride_tricks.sliding_window_view(truth(devkit, n % 3), (4, 6))
        assert (windows == view.numpy()).all((2, 3)).any()
    assert not (views[:3] == views[3:]).flatten(1).all(1).any()  # the next epoch
    assert not torch.equal(stream(devkit, transforms=CROP, seed=1)[range(6)].labels, views)
    assert real.fresh and real.describe()["seed"] == 0
    plain = stream(devkit)
    assert not plain.fresh and "seed" not in plain.describe()
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        MMSegDataset(config(devkit), seed=-1)


def test_an_image_that_a_mixture_repeats_is_seen_anew(devkit):  # noqa: F811 - the fixture
    parts = [stream(devkit, transforms=CROP), stream(devkit, transforms=CROP, limit=1)]
    mixture = MixtureStream(parts, [1, 1])
    mixture.bind(parts[0].vocabulary)
    assert mixture.fresh and len(mixture) == 6
    batch = mixture.complete(mixture[range(12)], None)
    assert len({str(view.tolist()) for view in batch.labels[1::2]}) == 6
    assert torch.equal(batch.labels[1::2], parts[1][range(6)].labels)


class Watching(PixelSegmenter):
    """Keeps the labels that it learns from."""

    def loss(self, images, labels):
        self.__dict__.setdefault("seen", []).append(labels.tolist())
        return super().loss(images, labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_draws_what_it_would_have_drawn(
    devkit,  # noqa: F811 - the fixture
    tmp_path,
    workers,
):
    def run(steps, checkpoint=None):
        np.random.seed(steps)
        real = MMSegDataset(config(devkit), CROP, classes="seen", seed=1)
        data = SyntheticDataModule("voc", "zs3", 1, train=real, num_workers=workers)
        model = SegmentationModule(Watching, SGD, vocabulary=data.vocabulary)
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4)
        more = {"enable_checkpointing": True, "callbacks": [saver]}
        trainer = quiet_trainer(tmp_path, max_steps=steps, **more)
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        return model.segmenter.seen

    straight = run(9)  # three epochs of three images
    assert len({str(labels) for labels in straight}) == 9
    assert run(4) + run(9, tmp_path / "step=4.ckpt") == straight
    real = stream(devkit, transforms=CROP, classes="seen", seed=1)
    places = [3 * epoch + p for epoch in range(3) for (p,) in shuffled_batches(3, 1, 0, epoch)]
    assert [real[[place]].labels.tolist() for place in places] == straight


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_a_protocol_refuses_another_size_than_the_images_own(
    devkit,  # noqa: F811 - the fixture
    tmp_path,
    verb,
):
    words = {"vocabulary": Vocabulary.load("voc", "zs3")}

    def score(transforms, mixed=False, **protocol):
        real = MMSegDataset(config(devkit), transforms)
        real = {"real": MixtureStream([real]) if mixed else real}
        data = SyntheticDataModule("voc", "zs3", 2, val=real, test=real)
        model = SegmentationModule(PixelSegmenter, SGD, **words, **protocol)
        getattr(quiet_trainer(tmp_path), verb)(model, data, verbose=False)

    halved = [{"type": "Resize", "scale": (15, 10), "keep_ratio": True}]
    score([{"type": "RandomFlip", "prob": 1.0}], protocol="voc_zs3")
    score(halved)
    for mixed in (False, True):
        with pytest.raises(
            ValueError,
            match="protocol voc_zs3 scores images at their own size; number 0 of the stream has "
            "20 x 30 pixels, its label map 10 x 15: leave out transforms that change it",
        ):
            score(halved, mixed, protocol="voc_zs3")
