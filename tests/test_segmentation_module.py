"""Stage 4 with the third party's segmenter, in this process."""

import functools
import json

import pytest
import torch
from acme.segmenter import PixelSegmenter
from toy_data import data_module, live_stream, quiet_trainer

from ovseg.augment import Augmentation
from ovseg.modules.segmentation import SegmentationModule

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
