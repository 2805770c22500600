"""What a segmenter gets wrong: confusions and worst images of a test."""

import base64
import csv
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_segmentation_module import ADAM, Painted, Pictures
from test_segmentation_views import Brightest, Unequal
from toy_data import quiet_trainer

from ovseg.callbacks.mistakes import TestMistakes
from ovseg.callbacks.pictures import TestPictures
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.metrics import confusion_iou
from ovseg.modules.segmentation import SegmentationModule
from ovseg.protocol import Protocol
from ovseg.report.pictures import IGNORED, load_pictures
from ovseg.vocabulary import Vocabulary

CLIPART = Vocabulary.load("clipart")


@pytest.fixture(scope="module")
def maps():
    """Return predictions and labels of seven images; the last has nothing but background."""
    generator = torch.Generator().manual_seed(1)
    shape = (7, 6, 5)
    labels = torch.randint(0, 21, shape, generator=generator)
    other = torch.randint(0, 21, shape, generator=generator)
    share = torch.tensor([0.9, 0.1, 0.5, 0.1, 0.7, 0.3, 0.0])[:, None, None]
    predictions = torch.where(torch.rand(shape, generator=generator) < share, other, labels)
    labels[torch.rand(shape, generator=generator) < 0.1] = 255
    labels[6], predictions[6] = 0, 0
    return predictions, labels


def run(folder, predictions, labels, batch_size=2, vocabulary="clipart", worst=3, **arguments):
    """Test a segmenter that predicts this, with the callback."""
    source = SyntheticDataModule(
        vocabulary, "1", batch_size, test={"val": Pictures(predictions, labels)}
    )
    model = SegmentationModule(Painted, ADAM, vocabulary=source.vocabulary, **arguments)
    trainer = quiet_trainer(folder, callbacks=[TestMistakes(worst)])
    trainer.test(model, source, verbose=False)
    return folder


def read(path) -> np.ndarray:
    head, *rows = csv.reader(path.read_text().splitlines())
    assert head[1:] == [row[0] for row in rows] == list(CLIPART.names)
    return np.array([row[1:] for row in rows]).astype(int)


def by_loops(predictions, labels, scored) -> np.ndarray:
    matrix = np.zeros((21, 21), int)
    for said, true in zip(predictions.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if true in scored:
            matrix[true, said] += 1
    return matrix


def test_the_table_counts_every_scored_pixel(maps, tmp_path):
    everything = run(tmp_path / "a", *maps)
    assert np.array_equal(read(everything / "confusion_val.csv"), by_loops(*maps, range(21)))
    objects = run(tmp_path / "b", *maps, score_background=False)
    assert np.array_equal(read(objects / "confusion_val.csv"), by_loops(*maps, range(1, 21)))
    for folder in (everything, objects):
        assert (folder / "confusion_val.png").read_bytes().startswith(b"\x89PNG")


def test_the_worst_images_stand_on_the_page_whatever_the_batches(maps, tmp_path):
    predictions, labels = maps
    scores = {}
    for index in range(7):
        matrix = by_loops(predictions[index], labels[index], range(21))
        iou = confusion_iou(torch.from_numpy(matrix))[1:].numpy()
        both = matrix.diagonal()[1:]
        union = matrix.sum(0)[1:] + matrix.sum(1)[1:] - both
        assert iou[union > 0] == pytest.approx(100 * both[union > 0] / union[union > 0])
        if (union > 0).any():
            scores[index] = iou[union > 0].mean()
    assert 6 not in scores  # no class of the mean is in it
    wanted = [f"Image {i}: {scores[i]:.1f}" for i in sorted(scores, key=scores.get)]
    pages = []
    for batch_size in (2, 7):
        folder = run(tmp_path / str(batch_size), predictions, labels, batch_size)
        pages.append((folder / "worst_val.html").read_text())
    assert pages[0] == pages[1]
    assert re.findall(r"Image \d+: [\d.]+", pages[0]) == wanted[:3]
    assert "Of 7 images" in pages[0] and pages[0].count("data:image/png") == 6
    everything = run(tmp_path / "all", predictions, labels, worst=50)
    assert re.findall(r"Image \d+: [\d.]+", (everything / "worst_val.html").read_text()) == wanted


def test_equals_come_in_the_order_of_their_numbers(tmp_path):
    predictions = torch.full((5, 2, 2), 3)
    labels = torch.tensor([3, 4, 3, 4, 4])[:, None, None].expand(-1, 2, 2)
    page = (run(tmp_path, predictions, labels, worst=4) / "worst_val.html").read_text()
    assert re.findall(r"Image (\d+): ([\d.]+)", page) == [
        ("1", "0.0"),
        ("3", "0.0"),
        ("4", "0.0"),
        ("0", "100.0"),
    ]
    assert 'class="unseen"><i style="background:#0082c8"></i>boat 100.0' in page


def test_images_are_shown_without_padding(tmp_path):
    pictures = [(3, torch.full((4, 9), 3)), (1, torch.full((7, 5), 2)), (2, torch.full((2, 3), 4))]
    source = SyntheticDataModule("clipart", "1", 3, test={"val": Unequal(pictures)})
    model = SegmentationModule(Brightest, ADAM, vocabulary=source.vocabulary)
    callbacks = [TestMistakes(3), TestPictures(count=2)]
    quiet_trainer(tmp_path, callbacks=callbacks).test(model, source, verbose=False)
    page = (tmp_path / "worst_val.html").read_text()
    uris = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(uri))).size for uri in uris]
    assert sizes == [(5, 7)] * 3 + [(3, 2)] * 3 + [(9, 4)] * 3
    assert "not scored" not in page  # what padding was called
    stored = load_pictures(tmp_path / "pictures" / "val")
    assert [picture.image.shape for picture in stored] == [(4, 9, 3), (7, 5, 3)]
    assert all(labels.shape == p.image.shape[:2] for p in stored for labels in p.maps.values())


@pytest.mark.parametrize("name", ["clipart_1", "voc_zs3", "coco_65_15", "coco_stuff_156_15"])
def test_what_is_ignored_looks_like_no_class(name):
    protocol = Protocol.load(name)
    palette = np.array(Vocabulary.load(protocol.vocabulary, protocol.split).palette)
    assert np.abs(palette - IGNORED).max(axis=1).min() >= 32  # VOC's car is grey


def test_none_asked_for_and_none_to_score(maps, tmp_path):
    assert not (run(tmp_path / "a", *maps, worst=0) / "worst_val.html").exists()
    empty = torch.full((2, 3, 3), 255)
    folder = run(tmp_path / "b", torch.zeros_like(empty), empty)
    assert "No image with a class to score" in (folder / "worst_val.html").read_text()
    assert read(folder / "confusion_val.csv").sum() == 0
    with pytest.raises(ValueError, match="worst must be >= 0, got -1"):
        TestMistakes(-1)
