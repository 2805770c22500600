"""ovseg.export.voc, read back by MMSegmentation's PascalVOCDataset."""

import json

import numpy as np
import pytest
from exported import export, key, part, vocabulary_of, write_samples
from PIL import Image
from toy_data import contents

from ovseg.data.real import MMSegDataset
from ovseg.vocabulary import Vocabulary


def read(out, part_name, vocabulary, **config):
    """Return ``{key: (image, labels)}`` as MMSegmentation's dataset class reads them."""
    dataset = {
        "type": "PascalVOCDataset",
        "data_root": str(out),
        "ann_file": f"ImageSets/Segmentation/{part_name}.txt",
        "data_prefix": {"img_path": "JPEGImages", "seg_map_path": "SegmentationClass"},
        "img_suffix": ".png",
        **config,
    }
    stream = MMSegDataset(dataset)
    stream.bind(vocabulary)
    keys = (out / dataset["ann_file"]).read_text().split()
    batches = [stream[[n]] for n in range(len(stream))]
    pairs = [(b.images[0].permute(1, 2, 0).numpy(), b.labels[0].numpy()) for b in batches]
    return dict(zip(keys, pairs, strict=True))


def check(samples, out, vocabulary, **config):
    for name in ("train", "val"):
        pairs = read(out, name, vocabulary, **config)
        wanted = [s for s in samples if part(s) == name]
        assert list(pairs) == [key(s) for s in wanted] and wanted
        for sample in wanted:
            image, labels = pairs[key(sample)]
            assert np.array_equal(image, sample.image) and np.array_equal(labels, sample.mask)


def test_pascal_voc_dataset_reads_the_same_pixels(tmp_path):
    samples, out = write_samples(tmp_path / "data", "voc"), tmp_path / "out"
    assert export(tmp_path / "data", out, "voc") == 0
    check(samples, out, Vocabulary.load("voc"))
    record = json.loads((out / "export.json").read_text())
    assert record["samples"] == {"train": 10, "val": 2}
    with Image.open(out / "SegmentationClass" / "00000003.png") as picture:
        assert picture.mode == "P"
        colors = np.array(picture.convert("RGB"))
    assert colors[-1, 0].tolist() == [224, 224, 192]  # VOC's colour of 255
    assert colors[6, 4].tolist() == [0, 0, 128]  # class 4, boat


def test_other_classes_are_read_under_their_own_names(tmp_path):
    path = vocabulary_of(tmp_path)
    samples, out = write_samples(tmp_path / "data", path), tmp_path / "out"
    assert export(tmp_path / "data", out, "voc", "--vocabulary", path) == 0
    classes = json.loads((out / "export.json").read_text())["classes"]
    config = {"type": "BaseSegDataset", "metainfo": {"classes": classes}}
    check(samples, out, Vocabulary.load(path), **config)


@pytest.mark.parametrize("share", ["0", "0.999999999999"])
def test_a_part_may_be_empty(tmp_path, share):
    write_samples(tmp_path / "data", "voc")
    assert export(tmp_path / "data", tmp_path / "out", "voc", "--val-share", share) == 0
    files = contents(tmp_path / "out")
    lists = [files[f"ImageSets/Segmentation/{name}.txt"] for name in ("train", "val")]
    assert sorted(len(text.split()) for text in lists) == [0, 12]
