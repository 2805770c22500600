"""ovseg.export.yolo: polygons filled again."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from exported import ODD, export, key, part, vocabulary_of, write_samples
from PIL import Image

from ovseg.export.format import segments_of
from ovseg.export.yolo import fill, outlines


def read(path, width, height):
    """Return class and mask of every line, by the arithmetic of Ultralytics' loader."""
    found = []
    for line in path.read_text().splitlines():
        number, *values = line.split()
        assert len(values) >= 6 and all(0 < float(v) < 1 for v in values)
        points = np.array(values, np.float32).reshape(-1, 2) * np.float32([width, height])
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [points.astype(np.int32)], 1)
        found.append((int(number), mask.astype(bool)))
    return found


@pytest.mark.parametrize("instances", [True, False])
def test_polygons_cover_the_objects(tmp_path, instances):
    path, out = vocabulary_of(tmp_path), tmp_path / "out"
    samples = write_samples(tmp_path / "data", path, instances)
    assert export(tmp_path / "data", out, "yolo", "--vocabulary", path) == 0
    holes = 0
    for sample in samples:
        place = f"{part(sample)}/{key(sample)}"
        with Image.open(out / "images" / f"{place}.png") as image:
            assert np.array_equal(np.array(image), sample.image)
        height, width = sample.mask.shape
        lines = read(out / "labels" / f"{place}.txt", width, height)
        for class_id in np.unique(sample.mask[(sample.mask > 0) & (sample.mask < 255)]):
            masks = [mask for number, mask in lines if number == class_id - 1]
            covered, wanted = np.logical_or.reduce(masks), sample.mask == class_id
            assert (covered & wanted).sum() / (covered | wanted).sum() > 0.98
            assert (covered >= wanted).all()
            holes += int((covered & ~wanted).sum())
        if instances:
            assert len(lines) == len(segments_of(sample)) == 4
        else:
            assert len(lines) == 3  # three pieces of two classes
    facts = json.loads((out / "export.json").read_text())
    assert facts["polygons"] == 12 * (3 + instances)
    assert facts["pixels_of_objects"] == 12 * (3 * 60 - 1)
    assert facts["pixels_of_filled_holes"] == holes == 12


@pytest.mark.parametrize("instances", [True, False])
def test_supervision_gives_every_object_back(tmp_path, instances):
    supervision = pytest.importorskip("supervision", reason="the test extra is not installed")
    path, out = vocabulary_of(tmp_path), tmp_path / "out"
    samples = write_samples(tmp_path / "data", path, instances)
    assert export(tmp_path / "data", out, "yolo", "--vocabulary", path) == 0
    for name in ("train", "val"):
        read = supervision.DetectionDataset.from_yolo(
            images_directory_path=str(out / "images" / name),
            annotations_directory_path=str(out / "labels" / name),
            data_yaml_path=str(out / "data.yaml"),
        )
        assert read.classes == ODD
        found = {Path(place).stem: (image, objects) for place, image, objects in read}
        mine = [sample for sample in samples if part(sample) == name]
        assert sorted(found) == [key(sample) for sample in mine]
        for sample in mine:
            image, objects = found[key(sample)]
            assert np.array_equal(image[..., ::-1], sample.image)  # OpenCV's order of colours
            assert len(objects) == 3 + instances
            for class_id in np.unique(sample.mask[(sample.mask > 0) & (sample.mask < 255)]):
                covered = objects.mask[objects.class_id == class_id - 1].any(0)
                wanted = sample.mask == class_id
                assert (covered >= wanted).all() and (covered & ~wanted).sum() <= 1  # a hole


def test_data_yaml_names_the_classes_and_both_folders(tmp_path):
    path, out = vocabulary_of(tmp_path), tmp_path / "out"
    write_samples(tmp_path / "data", path)
    assert export(tmp_path / "data", out, "yolo", "--vocabulary", path, "--val-share", 0) == 0
    data = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    assert data["names"] == dict(enumerate(ODD))
    assert len(list((out / data["train"]).iterdir())) == 12
    assert list((out / data["val"]).iterdir()) == []


def test_outlines_give_masks_back_but_for_holes():
    ring = np.ones((5, 7), bool)
    ring[2, 2:4] = False
    assert fill(outlines(ring), ring.shape).all()
    specks = np.eye(4, 6, dtype=bool)  # one piece: its pixels touch at their corners
    specks[0, 5] = True
    assert [p.tolist() for p in outlines(specks)][0] == [[5, 0]] * 3
    assert np.array_equal(fill(outlines(specks), specks.shape), specks)
    assert outlines(np.zeros((3, 3), bool)) == []
    for seed in range(20):
        blobs = cv2.GaussianBlur(np.random.default_rng(seed).random((40, 50)), (0, 0), 3) > 0.5
        _, pieces = cv2.connectedComponents((~blobs).astype(np.uint8), connectivity=4)
        edge = {*pieces[0], *pieces[-1], *pieces[:, 0], *pieces[:, -1]}
        whole = blobs | ~np.isin(pieces, list(edge))  # background that reaches no edge is a hole
        assert np.array_equal(fill(outlines(blobs), blobs.shape), whole)
