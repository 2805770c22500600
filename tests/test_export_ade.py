"""ovseg.export.ade, read back by MMSegmentation's ADE20KDataset."""

import json

import numpy as np
from exported import export, key, part, vocabulary_of, write_samples

from ovseg.data.real import MMSegDataset
from ovseg.vocabulary import Vocabulary

FOLDERS = {"train": "training", "val": "validation"}


def check(samples, out, vocabulary, wanted_labels, **config):
    for name, folder in FOLDERS.items():
        prefix = {"img_path": f"images/{folder}", "seg_map_path": f"annotations/{folder}"}
        dataset = {"data_root": str(out), "data_prefix": prefix, "img_suffix": ".png", **config}
        stream = MMSegDataset(dataset)
        stream.bind(vocabulary)
        wanted = sorted((s for s in samples if part(s) == name), key=key)
        assert len(stream) == len(wanted) > 0
        for place, sample in enumerate(wanted):
            batch = stream[[place]]
            assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), sample.image)
            assert np.array_equal(batch.labels[0].numpy(), wanted_labels(sample.mask))


def without_background(mask):
    return np.where(mask == 0, 255, mask)


def test_ade20k_dataset_reads_the_same_pixels_and_ignores_background(tmp_path):
    path = vocabulary_of(tmp_path, ["wall", "building", "sky"])  # ADE20K's first three
    samples, out = write_samples(tmp_path / "data", path), tmp_path / "out"
    assert export(tmp_path / "data", out, "ade", "--vocabulary", path) == 0
    check(samples, out, Vocabulary.load(path), without_background, type="ADE20KDataset")


def test_other_classes_with_and_without_background(tmp_path):
    samples, out = write_samples(tmp_path / "data", "voc"), tmp_path / "out"
    assert export(tmp_path / "data", out, "ade") == 0
    vocabulary = Vocabulary.load("voc")
    names = json.loads((out / "export.json").read_text())["classes"]
    for classes, labels in ((names[1:], without_background), (names, np.array)):
        config = {"metainfo": {"classes": classes}, "reduce_zero_label": len(classes) == 20}
        check(samples, out, vocabulary, labels, type="BaseSegDataset", **config)
