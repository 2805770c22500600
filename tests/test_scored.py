"""ovseg.modules.scored: what a checkpoint says of the masks that it has learnt from."""

import functools

import pytest
import torch
from acme.segmenter import PixelSegmenter
from toy_data import quiet_trainer

from ovseg.clipart.stream import DrawnScenes
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.modules.segmentation import SegmentationModule

SGD = functools.partial(torch.optim.SGD, lr=0.01)


def trained(folder, classes: str, split: str, **arguments):
    """Train for a step; return the checkpoint."""
    scenes = DrawnScenes(4, seed=1, classes=classes)
    data = SyntheticDataModule("clipart", split, 4, train=scenes)
    module = SegmentationModule(PixelSegmenter, SGD, vocabulary=data.vocabulary, **arguments)
    trainer = quiet_trainer(folder, max_steps=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


def score(folder, checkpoint, split: str, **arguments) -> None:
    data = SyntheticDataModule("clipart", split, 4, test={"drawn": DrawnScenes(4, seed=2)})
    module = SegmentationModule(PixelSegmenter, SGD, vocabulary=data.vocabulary, **arguments)
    quiet_trainer(folder).test(module, data, ckpt_path=checkpoint, verbose=False)


def test_masks_of_one_split_are_not_tested_as_unseen_of_another(tmp_path):
    checkpoint = trained(tmp_path, "seen", "1")
    score(tmp_path, checkpoint, "1")
    with pytest.raises(
        ValueError, match="trained with masks of bus, bird, .* split 2 calls unseen"
    ):
        score(tmp_path, checkpoint, "2")
    score(tmp_path, checkpoint, "2", unseen_masks=True)


def test_a_bound_stays_a_bound(tmp_path):
    checkpoint = trained(tmp_path, "all", "1", unseen_masks=True)
    with pytest.raises(ValueError, match="this is no zero-shot result"):
        score(tmp_path, checkpoint, "1")
