"""Stage 4 with the third party's segmenter, in this process."""

import functools
import json

import pytest
import torch
from acme.annotator import ColorAnnotator
from acme.segmenter import PixelSegmenter
from toy_data import data_module, live_stream, quiet_trainer, write_dataset

from ovseg.augment import Augmentation
from ovseg.clipart.stream import DrawnScenes
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.shards import ShardStream
from ovseg.modules.segmentation import SegmentationModule
from ovseg.vocabulary import Vocabulary

ADAM = functools.partial(torch.optim.Adam, lr=0.01)


def data():
    test = {"all": live_stream(12, seed=1), "unseen": live_stream(7, "unseen", seed=2)}
    return data_module(8, train=live_stream(64), val={"all": live_stream(6, seed=3)}, test=test)


def by_loops(predictions, labels, class_id: int) -> float | None:
    union = ((predictions == class_id) | (labels == class_id)).sum().item()
    both = ((predictions == class_id) & (labels == class_id)).sum().item()
    return 100 * both / union if union else None


def test_fit_then_test(tmp_path):
    torch.manual_seed(0)
    source = data()
    facts = {"vocabulary": source.vocabulary, "augment": Augmentation(shift=0.1)}
    model = SegmentationModule(PixelSegmenter, ADAM, **facts)
    trainer = quiet_trainer(tmp_path, max_epochs=25, check_val_every_n_epoch=25)
    trainer.fit(model, source)
    assert {"train/loss", "val/miou_seen", "val/all/hiou"} <= set(trainer.callback_metrics)
    trainer.test(model, source, verbose=False)
    logged = trainer.callback_metrics
    assert {"test/miou_seen", "test/miou_unseen", "test/hiou"} <= set(logged)
    assert {"test/all/miou", "test/unseen/miou"} <= set(logged)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["all", "unseen"]
    stream = source.test["all"]
    batch = stream.complete(stream[list(range(12))], source.backbone)
    with torch.no_grad():
        predictions = model.eval()(batch.images).argmax(dim=1)
    for c in source.vocabulary.classes:
        iou = by_loops(predictions, batch.labels, c.id)
        assert results["all"]["per_class"].get(c.key) == pytest.approx(iou, abs=1e-3)
    assert results["all"]["background"] > 90
    assert results["all"]["harmonic"] > 20
    assert results["all"]["score_background"] is True


def test_masks_of_unseen_classes_are_refused_unless_they_are_asked_for(tmp_path):
    drawn = DrawnScenes(8, seed=1)
    for allowed in (False, True):
        source = SyntheticDataModule("clipart", "1", 4, train=drawn, test={"drawn": drawn})
        model = SegmentationModule(
            PixelSegmenter, ADAM, vocabulary=source.vocabulary, unseen_masks=allowed
        )
        trainer = quiet_trainer(tmp_path, max_steps=1)
        if allowed:
            trainer.fit(model, source)
        else:
            with pytest.raises(ValueError, match="masks of boat, cat, flower, key, umb"):
                trainer.fit(model, source)
    quiet_trainer(tmp_path).test(model, source, verbose=False)
    assert json.loads((tmp_path / "results.json").read_text())["drawn"]["unseen_masks"] is True


def test_whose_masks_a_stream_teaches(tmp_path, monkeypatch):
    """Those that its annotator has found and was trained with."""
    words, trained = Vocabulary.load("clipart"), range(5, 15)
    facts = {"requested_classes": list(range(1, 11)), "trained_on": list(trained)}
    monkeypatch.setattr(ColorAnnotator, "describe", lambda self: facts)
    stream = live_stream()
    stream.bind(words)
    assert stream.taught_classes() == set(range(5, 11))
    stored = ShardStream(str(write_dataset(tmp_path / "shards")))
    stored.bind(words)
    samples = [stored.sample(i) for i in range(10)]
    found = {
        e.class_id
        for s in samples
        for e, hit in zip(s.request.entities, s.found, strict=True)
        if hit
    }
    assert stored.taught_classes() == found & set(trained) != set()
    scenes = DrawnScenes(3, 0, classes="seen")
    scenes.bind(words)
    assert scenes.taught_classes() == set(words.seen)


def test_a_protocol_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="background"):
        SegmentationModule(
            PixelSegmenter,
            ADAM,
            vocabulary=data().vocabulary,
            background_in_mean=True,
            score_background=False,
        )
    with pytest.raises(ValueError, match="vocabulary"):
        SegmentationModule(PixelSegmenter, ADAM)
