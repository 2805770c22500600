"""Stage 4 with the third party's segmenter, in this process."""

import functools
import json

import numpy as np
import pytest
import torch
import yaml
from acme.annotator import ColorAnnotator
from acme.segmenter import PixelSegmenter
from toy_data import data_module, live_stream, quiet_trainer, write_dataset

from ovseg import compare
from ovseg.augment import Augmentation
from ovseg.clipart.stream import DrawnScenes
from ovseg.data.base import UNSEEN_NAMES, Stream
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.shards import ShardStream
from ovseg.modules.segmentation import SegmentationModule
from ovseg.segmenters.base import Segmenter
from ovseg.segmenters.folder import load_segmenter
from ovseg.structures import Batch
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
    folder = tmp_path / "segmenter"
    model = SegmentationModule(PixelSegmenter, ADAM, output=str(folder), **facts)
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
    saved = load_segmenter(folder)
    with torch.no_grad():
        predictions = saved.segmenter(batch.images).argmax(dim=1)
    taught = {source.vocabulary[i].key for i in source.train.taught_classes()}
    assert set(saved.trained_on) == taught
    for c in source.vocabulary.classes:
        iou = by_loops(predictions, batch.labels, c.id)
        assert results["all"]["per_class"].get(c.key) == pytest.approx(iou, abs=1e-3)
    assert results["all"]["background"] > 90
    assert results["all"]["harmonic"] > 20
    assert results["all"]["protocol"]["score_background"] is True
    assert not (tmp_path / "results.md").exists()  # these choices have no name


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
    """Those that its annotator was asked for and was trained with, found or not."""
    words, trained = Vocabulary.load("clipart"), range(5, 15)
    facts = {"requested_classes": list(range(1, 11)), "trained_on": list(trained)}
    monkeypatch.setattr(ColorAnnotator, "describe", lambda self: facts)
    stream = live_stream()
    stream.bind(words)
    assert stream.taught_classes() == set(range(5, 11))
    stored = ShardStream(str(write_dataset(tmp_path / "shards")))
    stored.bind(words)
    assert stored.taught_classes() == set(range(5, 11))
    del facts["trained_on"]
    silent = ShardStream(str(write_dataset(tmp_path / "silent")))
    silent.bind(words)
    assert silent.taught_classes() == set(range(1, 11))  # who does not say counts as trained
    assert stream.taught_classes() == set(range(1, 11))
    del facts["requested_classes"]
    assert stream.taught_classes() == {c.id for c in words.classes}
    assert stream.practices() == {UNSEEN_NAMES}
    scenes = DrawnScenes(3, 0, classes="seen")
    scenes.bind(words)
    assert scenes.taught_classes() == set(words.seen)


def test_weights_of_more_classes_are_refused_before_they_are_loaded():
    clipart = SegmentationModule(PixelSegmenter, ADAM, vocabulary=Vocabulary.load("clipart"))
    stuff = SegmentationModule(
        PixelSegmenter, ADAM, vocabulary=Vocabulary.load("coco_stuff", "zs3")
    )
    checkpoint = {}
    stuff.on_save_checkpoint(checkpoint)
    stuff.on_load_checkpoint(checkpoint)
    clipart.on_load_checkpoint({})  # of an older version
    with pytest.raises(ValueError, match="on 171 classes, .* 'clipart' has 20; .* number 1,"):
        clipart.on_load_checkpoint(checkpoint)


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


class Painted(Segmenter):
    """Logits that say, for every pixel, the class in the first channel; the next one second."""

    def forward(self, images):
        first = images[:, 0].long()
        numbers = torch.arange(self.num_classes, device=images.device).view(1, -1, 1, 1)
        return -((numbers - first[:, None]) % self.num_classes).float()

    def loss(self, images, labels):
        raise NotImplementedError


class Pictures(Stream):
    """Label maps whose images are a prediction, see `Painted`."""

    def __init__(self, predictions, labels):
        self.predictions, self.labels = predictions, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, positions):
        images = self.predictions[list(positions), None].expand(-1, 3, -1, -1).to(torch.uint8)
        return Batch(
            indices=torch.tensor(positions), images=images, labels=self.labels[list(positions)]
        )


def score(tmp_path, predictions, labels, vocabulary="clipart", split="1", **arguments) -> dict:
    """Test a segmenter that predicts this; return the results of the stream."""
    test = {"val": Pictures(predictions, labels)}
    source = SyntheticDataModule(vocabulary, split, 2, test=test)
    model = SegmentationModule(Painted, ADAM, vocabulary=source.vocabulary, **arguments)
    quiet_trainer(tmp_path).test(model, source, verbose=False)
    return json.loads((tmp_path / "results.json").read_text())["val"]


def own(folder, **changes) -> str:
    """Write a protocol of the clip-art world."""
    choices = {"name": "own", "title": "mine", "vocabulary": "clipart", "split": "1"}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({**choices, **changes}))
    return str(path)


def voc_images(background: int = 733, ignored: int = 47):
    """Return label maps of VOC's 21 classes: 1000 scored pixels, 13 or 14 of each object."""
    objects = [13] * 13 + [14] * 7
    values = [0] * background + [255] * ignored
    values += [c for c, count in enumerate(objects, start=1) for _ in range(count)]
    return torch.tensor(values).view(3, 1, -1)


def test_background_everywhere_scores_3_49_on_voc(tmp_path):
    """The known value of the val masks, 73.3 % background: its IoU divided by 21 classes."""
    labels = voc_images()
    found = score(tmp_path, torch.zeros_like(labels), labels, "voc", background_in_mean=True)
    assert found["background"] == pytest.approx(73.3)
    assert found["mean"] == pytest.approx(73.3 / 21, abs=1e-4) == pytest.approx(3.49, abs=1e-3)
    assert found["seen"] == pytest.approx(73.3 / 16, abs=1e-4)
    assert (found["unseen"], found["harmonic"]) == (0, 0)
    left_out = score(tmp_path, torch.zeros_like(labels), labels, "voc")
    assert (left_out["seen"], left_out["mean"]) == (0, 0)
    # nobody may say background under the standard protocol: the next class is said, aeroplane
    labels = voc_images()
    found = score(tmp_path, torch.zeros_like(labels), labels, "voc", "zs3", protocol="voc_zs3")
    assert found["per_class"]["aeroplane"] == pytest.approx(100 * 13 / 267, abs=1e-4)
    assert found["seen"] == pytest.approx(100 * 13 / 267 / 15, abs=1e-4)
    assert found["protocol"]["name"] == "voc_zs3" and "background" in found


def test_only_unseen_classes_compete_where_the_protocol_says_so(tmp_path):
    """Clip art 1: boat 3, cat 6, flower 8, key 15, umbrella 18 are unseen."""
    novel = {"background_predicted": False, "score_background": False, "setting": "novel-only"}
    said = torch.tensor([[[1, 4, 7, 3, 3, 0, 9, 16]]])
    labels = torch.tensor([[[3, 6, 6, 3, 5, 0, 255, 18]]])
    # the next unseen class of each: 3 6 8 3 3 3 15 18; pixels 4, 5, 6 are ignored
    found = score(tmp_path, said, labels, protocol=own(tmp_path, **novel))
    assert found["per_class"] == {"boat": 100, "cat": 50, "flower": 0, "umbrella": 100}
    assert found["unseen"] == 62.5 and found["seen"] is None and found["harmonic"] is None
    everywhere = score(tmp_path, said, labels)
    assert everywhere["per_class"]["boat"] == pytest.approx(100 / 3, abs=1e-3)


def test_a_protocol_prints_itself_and_writes_its_table(tmp_path, capsys):
    labels = torch.randint(0, 21, (3, 64, 64), generator=torch.Generator().manual_seed(0))
    found = score(tmp_path, labels, labels, protocol="clipart_1")
    printed = capsys.readouterr().out
    assert "Protocol clipart_1: drawn scenes" in printed and "a bound" not in printed
    assert "val: comparable are nobody's figures; all rows: " in printed
    assert found["protocol"]["setting"] == "generalised" and found["seen"] == 100
    text = (tmp_path / "results.md").read_text()
    assert "| **Painted** | not given | 100.0 | 100.0 | 100.0 |" in text
    assert found["images"] == 3 and "## val, 3 images" in text
    with np.load(tmp_path / "results_images.npz", allow_pickle=False) as arrays:
        assert arrays["val/indices"].tolist() == [0, 1, 2]
        for image, areas in zip(labels, arrays["val/areas"], strict=True):
            counts = torch.bincount(image.flatten(), minlength=21).numpy()
            assert (areas == counts).all()  # intersection, union and truth
    read = compare.read(tmp_path)["val"]
    result = compare.compare(read, read, resamples=20)
    assert read.facts == found["protocol"] and result["unseen"]["difference"] == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.json", "results.md", "results_images.npz"}
    with pytest.raises(ValueError, match="images of 64 x 64 pixels, .* have 64 x 60"):
        score(tmp_path, labels[:, :, :60], labels[:, :, :60], protocol="clipart_1")


def test_mirrored_images_are_averaged(tmp_path):
    class Left(Painted):
        def forward(self, images):
            logits = torch.zeros(len(images), self.num_classes, *images.shape[2:])
            logits[:, 1, :, 0] = 4.0  # whatever the image, its first column is class 1
            logits[:, 2] = 1.0
            return logits

    source = SyntheticDataModule("clipart", "1", 2)
    facts = {"vocabulary": source.vocabulary, "protocol": own(tmp_path, flips=True)}
    model = SegmentationModule(Left, ADAM, **facts)
    batch = Batch(indices=torch.tensor([0]), images=torch.zeros(1, 3, 1, 4).byte())
    assert model.predict_step(batch, 0).tolist() == [[[1, 2, 2, 1]]]


def test_what_contradicts_a_protocol_is_refused(tmp_path):
    facts = {"vocabulary": Vocabulary.load("voc", "zs3"), "protocol": "voc_zs3"}
    agreed = SegmentationModule(Painted, ADAM, score_background=False, **facts)
    assert agreed.protocol.name == "voc_zs3"
    for key in ("score_background", "background_in_mean"):
        with pytest.raises(ValueError, match=f"{key} is True, but False in protocol voc_zs3"):
            SegmentationModule(Painted, ADAM, **facts, **{key: True})
    with pytest.raises(ValueError, match="split 'zs3'; the data module has 'voc', split '2'"):
        SegmentationModule(Painted, ADAM, None, Vocabulary.load("voc", "2"), protocol="voc_zs3")
    with pytest.raises(ValueError, match="no protocol 'voc_zs': give voc_zs3"):
        SegmentationModule(Painted, ADAM, None, facts["vocabulary"], protocol="voc_zs")


def stored_dataset(folder, monkeypatch, requested, trained) -> SyntheticDataModule:
    """Write the dataset of an annotator that says this of itself."""
    facts = {"requested_classes": list(requested), "trained_on": list(trained)}
    monkeypatch.setattr(ColorAnnotator, "describe", lambda self: facts)
    return SyntheticDataModule("clipart", "1", 4, train=ShardStream(str(write_dataset(folder))))


def test_a_dataset_whose_annotator_learnt_unseen_masks_is_refused(tmp_path, monkeypatch):
    """dataset.json tells a detector of all classes from a grounder that learnt seen ones."""
    words = Vocabulary.load("clipart")
    everything = words.select("all")
    source = stored_dataset(tmp_path / "detector", monkeypatch, everything, everything)
    source.train.bind(words)
    with pytest.raises(ValueError, match="teaches masks of .*, which split 1 calls unseen"):
        SegmentationModule(Painted, ADAM, vocabulary=words).learn_from("train", source.train)
    for allowed in ({"unseen_masks": True}, {"protocol": own(tmp_path, allows_unseen_masks=True)}):
        model = SegmentationModule(Painted, ADAM, vocabulary=words, **allowed)
        model.learn_from("train", source.train)
        assert model.unseen_masks
    grounder = stored_dataset(tmp_path / "grounder", monkeypatch, everything, words.seen)
    grounder.train.bind(words)
    found = grounder.train.manifest["counts"]["classes"]
    assert any(found[words[i].key]["found"] for i in words.unseen)
    SegmentationModule(Painted, ADAM, vocabulary=words).learn_from("train", grounder.train)
