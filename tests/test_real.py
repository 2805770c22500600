"""ovseg.data.real on trees of the true layouts, written here."""

from __future__ import annotations

import functools
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from acme.segmenter import PixelSegmenter
from PIL import Image
from toy_data import quiet_trainer

from ovseg.data.base import IGNORED_UNSEEN
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.real import MMSegDataset
from ovseg.modules.segmentation import SegmentationModule
from ovseg.vocabulary import Vocabulary

VOC = Vocabulary.load("voc", "zs3")
CAR, SHEEP, TV = (VOC.id_of(word) for word in ("car", "sheep", "tv"))
SIZES = [(20, 30), (30, 16), (24, 24)]  # height, width


@pytest.fixture(scope="module")
def devkit(tmp_path_factory):
    """Write a VOC2012 of three photos: label maps are palette PNGs, borders are 255."""
    root = tmp_path_factory.mktemp("voc") / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    r = np.random.default_rng(0)
    for n, (height, width) in enumerate(SIZES):
        color = [(200, 30, 40), (20, 180, 30), (10, 40, 220)][n]
        Image.new("RGB", (width, height), color).save(root / f"JPEGImages/p{n}.jpg", quality=95)
        labels = r.choice([0, CAR, SHEEP, TV, 255], size=(height, width)).astype(np.uint8)
        picture = Image.fromarray(labels)
        picture.putpalette([v for c in VOC.palette for v in c] + [0] * (768 - 63))
        picture.save(root / f"SegmentationClass/p{n}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("p0\np1\np2\n")
    return root


def config(root, **changes) -> dict:
    return {
        "type": "PascalVOCDataset",
        "data_root": str(root),
        "ann_file": "ImageSets/Segmentation/val.txt",
        "data_prefix": {"img_path": "JPEGImages", "seg_map_path": "SegmentationClass"},
        **changes,
    }


def truth(root, n: int) -> np.ndarray:
    with Image.open(root / f"SegmentationClass/p{n}.png") as picture:
        return np.asarray(picture).astype(np.int64)


def stream(root, vocabulary=VOC, dataset=None, **arguments) -> MMSegDataset:
    made = MMSegDataset(dataset or config(root), **arguments)
    made.bind(vocabulary)
    return made


def test_images_are_rgb_and_labels_the_datasets_own(devkit):
    real = stream(devkit)
    assert len(real) == 3 and len(stream(devkit, limit=2)) == 2
    for n, (height, width) in enumerate(SIZES):
        batch = real[[n]]
        assert batch.images.shape == (1, 3, height, width) and batch.images.dtype == torch.uint8
        assert np.array_equal(batch.labels[0].numpy(), truth(devkit, n))
    red = real[[0]].images[0].float().mean((1, 2))
    assert (red - torch.tensor([200.0, 30, 40])).abs().max() < 5


def test_a_batch_of_unequal_sizes_is_padded_with_what_is_ignored(devkit):
    batch = stream(devkit)[[1, 0]]
    assert batch.indices.tolist() == [1, 0] and batch.images.shape == (2, 3, 30, 30)
    assert np.array_equal(batch.labels[0, :30, :16].numpy(), truth(devkit, 1))
    assert np.array_equal(batch.labels[1, :20, :30].numpy(), truth(devkit, 0))
    assert (batch.labels[0, :, 16:] == 255).all() and (batch.labels[1, 20:] == 255).all()
    assert (batch.images[0, :, :, 16:] == 0).all()


def test_pixels_of_unseen_classes_are_ignored_for_training(devkit):
    labels = stream(devkit, classes="seen")[[2]].labels[0].numpy()
    before = truth(devkit, 2)
    assert stream(devkit, classes="seen").taught_classes() == set(VOC.seen)
    assert stream(devkit).taught_classes() == {*VOC.seen, *VOC.unseen}
    assert np.array_equal(labels, np.where(np.isin(before, [SHEEP, TV]), 255, before))


def test_classes_are_matched_by_name_and_others_are_a_choice(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (4, 2)).save(tmp_path / "images/a.png")
    labels = np.array([[1, 2, 3, 0], [3, 3, 1, 2]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels/a.png")
    dataset = {
        "type": "BaseSegDataset",
        "data_root": str(tmp_path),
        "img_suffix": ".png",
        "reduce_zero_label": True,  # 0 is unlabelled, as in ADE20K
        "metainfo": {"classes": ["wall", "television", "automobile"]},
        "data_prefix": {"img_path": "images", "seg_map_path": "labels"},
    }
    ignored = stream(None, dataset=dataset)[[0]].labels[0].tolist()
    assert ignored == [[255, TV, CAR, 255], [CAR, CAR, 255, TV]]
    with pytest.warns(UserWarning, match="1 of the dataset's classes become background: wall; "):
        kept = stream(None, dataset=dataset, others="background")[[0]].labels[0].tolist()
    assert kept == [[0, TV, CAR, 255], [CAR, CAR, 0, TV]]


@pytest.mark.parametrize(("count", "end"), [(1, ""), (10, ""), (11, " and 1 more")])
def test_classes_that_become_background_are_listed(devkit, count, end):
    """Screens under words that the vocabulary has not would be taught as background."""
    words = ["television receiver", *(f"thing {n}" for n in range(1, count))]
    metainfo = {"classes": ["background", "car", "tv", *words]}
    dataset = config(devkit, type="BaseSegDataset", metainfo=metainfo)
    with pytest.warns(UserWarning) as warned:
        stream(devkit, dataset=dataset, others="background", classes="seen")
    assert [str(warning.message) for warning in warned] == [
        f"{count} of the dataset's classes become background: {', '.join(words[:10])}{end}; if one "
        "of them is a class of the vocabulary under another word, give that as a synonym"
    ]
    assert stream(devkit, dataset=dataset).taught_classes() == {CAR, TV}  # without a warning


def test_nothing_is_warned_of_where_nothing_becomes_background(devkit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream(devkit, others="background")


def test_transforms_are_mmsegmentations(devkit):
    crop = [{"type": "RandomCrop", "crop_size": (8, 12)}, {"type": "RandomFlip", "prob": 1.0}]
    real = stream(devkit, transforms=crop)
    first = real[[0, 1, 2]]
    assert first.images.shape == (3, 3, 8, 12)
    # each crop stands somewhere in its mirrored label map
    for n in range(3):
        whole = truth(devkit, n)[:, ::-1]
        windows = np.lib.stride_tricks.sliding_window_view(whole, (8, 12))
        assert (windows == first.labels[n].numpy()).all((2, 3)).any()


def test_a_segmenter_is_scored_on_it_at_the_labels_own_sizes(devkit, tmp_path):
    """By a plain loop; the padding of a batch changes nothing for a pixelwise segmenter."""
    scores = {}
    for batch_size in (1, 3):
        real = MMSegDataset(config(devkit))
        data = SyntheticDataModule("voc", "zs3", batch_size, test={"val": real})
        model = SegmentationModule(
            PixelSegmenter, functools.partial(torch.optim.SGD, lr=0.1), vocabulary=data.vocabulary
        )
        with torch.no_grad():  # so that it says car, sheep, tv by the colour
            weights = model.segmenter.layers
            for layer in (weights[0], weights[2], weights[4]):
                layer.weight.zero_()
                layer.bias.zero_()
            for channel, class_id in enumerate((CAR, SHEEP, TV)):
                weights[0].weight[channel, channel] = weights[2].weight[channel, channel] = 1
                weights[4].weight[class_id, channel] = 1
        folder = tmp_path / str(batch_size)
        quiet_trainer(folder).test(model, data, verbose=False)
        scores[batch_size] = json.loads((folder / "results.json").read_text())["val"]
    assert scores[1] == scores[3]
    for n, class_id in enumerate((CAR, SHEEP, TV)):  # photo n is of that colour alone
        both = (truth(devkit, n) == class_id).sum()
        said = (truth(devkit, n) != 255).sum()
        there = sum((truth(devkit, m) == class_id).sum() for m in range(3))
        iou = 100 * both / (said + there - both)
        assert scores[1]["per_class"][VOC[class_id].key] == pytest.approx(iou, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ann_file": "ImageSets/none.txt"}, "no PascalVOCDataset in .*none.txt"),
        ({"data_prefix": {"img_path": "x", "seg_map_path": "y"}}, "no PascalVOCDataset in"),
        (
            {"data_prefix": {"img_path": "JPEGImages", "seg_map_path": "y"}},
            "3 of the .* missing, the first is .*y/p0.png, which belongs to .*JPEGImages/p0.jpg",
        ),
        (
            {"data_prefix": {"img_path": "SegmentationClass", "seg_map_path": "SegmentationClass"}},
            "3 of the .* missing, the first is .*p0.jpg, which belongs to .*p0.png",
        ),
        ({"type": "NoSuchDataset"}, "NoSuchDataset"),
        ({"colour": 3}, "colour"),
    ],
)
def test_what_is_missing_is_said(devkit, changes, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        stream(devkit, dataset=config(devkit, **changes))


def test_refusals(devkit, tmp_path):
    with pytest.raises(ValueError, match="all or seen"):
        MMSegDataset(config(devkit), classes="unseen")
    with pytest.raises(ValueError, match="give `transforms`"):
        MMSegDataset(config(devkit, pipeline=[]))
    with pytest.raises(ValueError, match="limit"):
        MMSegDataset(config(devkit), limit=0)
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(ValueError, match="is it empty"):
        stream(devkit, dataset=config(tmp_path, type="BaseSegDataset", ann_file=""))
    for name, labels, message in (
        ("shape", np.zeros((5, 5), np.uint8), "same size"),
        ("ids", np.array([[77, 0, 21, 255]] * 4, np.uint8).repeat(2, 1)[:, :6], "class: 21, 77; "),
        ("deep", np.full((4, 6), 300, np.uint16), "deep.png is a picture of mode I;16"),
        ("rgb", np.zeros((4, 6, 3), np.uint8), "of mode RGB, no label map"),
    ):
        Image.new("RGB", (6, 4)).save(devkit / f"JPEGImages/{name}.jpg")
        Image.fromarray(labels).save(devkit / f"SegmentationClass/{name}.png")
        (devkit / f"ImageSets/Segmentation/{name}.txt").write_text(f"{name}\n")
        wrong = config(devkit, ann_file=f"ImageSets/Segmentation/{name}.txt")
        with pytest.raises(ValueError, match=message):
            stream(devkit, dataset=wrong)[[0]]
    (tmp_path / "a.yaml").write_text(
        "name: pets\nclasses: [{key: hamster, color: [1, 2, 3]}]\nsplits: {'1': []}\n"
    )
    with pytest.raises(ValueError, match="none in common"):
        stream(devkit, vocabulary=Vocabulary.load(str(tmp_path / "a.yaml")))


def test_images_with_a_pixel_of_an_unseen_class_are_left_out(devkit, tmp_path):
    """Of three images with sheep and screens one gets a label map of cars alone."""
    root = tmp_path / "VOC2012"
    shutil.copytree(devkit, root)
    with pytest.raises(ValueError, match="every image of the dataset has a pixel of an unseen"):
        stream(root, leave_out_unseen=True)
    labels = np.where(truth(devkit, 1) == CAR, CAR, 0).astype(np.uint8)
    Image.fromarray(labels).save(root / "SegmentationClass/p1.png")
    kept = stream(root, leave_out_unseen=True)
    assert len(kept) == 1 and np.array_equal(kept[[0]].labels[0].numpy(), labels)
    assert kept.practices() == set() and kept.taught_classes() == set(VOC.seen)
    assert stream(root, classes="seen").practices() == {IGNORED_UNSEEN}
    assert len(stream(root, classes="seen")) == 3 and stream(root).practices() == set()
