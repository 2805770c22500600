"""ovseg.export.coco: read back by pycocotools, and panoptic by transformers and its arithmetic."""

import json

import numpy as np
import pytest
from exported import ODD, export, key, part, vocabulary_of, write_samples
from PIL import Image

pytest.importorskip("pycocotools", reason="the export extra is not installed")
from pycocotools.coco import COCO  # noqa: E402


@pytest.fixture(scope="module", params=[True, False], ids=["instances", "classes"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    path = vocabulary_of(folder)
    samples = write_samples(folder / "data", path, request.param)
    assert export(folder / "data", folder / "out", "coco", "--vocabulary", path) == 0
    return samples, folder / "out", request.param


def open_coco(out, name):
    return COCO(str(out / "annotations" / f"instances_{name}.json"))


# pycocotools 2.0.11 decodes with an interface that numpy 2 calls old
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_gives_every_object_back(exported):
    samples, out, instances = exported
    tables = {name: open_coco(out, name) for name in ("train", "val")}
    for sample in samples:
        coco, number = tables[part(sample)], sample.request.index
        (image,) = coco.loadImgs([number])
        assert (image["height"], image["width"]) == sample.mask.shape
        with Image.open(out / part(sample) / image["file_name"]) as picture:
            assert np.array_equal(np.array(picture), sample.image)
        found = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        labels, numbers = np.zeros((2, *sample.mask.shape), int)
        for annotation in found:
            mask = coco.annToMask(annotation).astype(bool)
            assert not labels[mask].any() and annotation["iscrowd"] == 0
            labels[mask] = annotation["category_id"]
            numbers[mask] = annotation["id"]
            rows, columns = np.nonzero(mask)
            left, top = columns.min(), rows.min()
            size = columns.max() - left + 1, rows.max() - top + 1
            assert annotation["bbox"] == [left, top, *size] and annotation["area"] == mask.sum()
        assert np.array_equal(labels, np.where(sample.mask == 255, 0, sample.mask))
        assert len(found) == (4 if instances else 2)
        if instances:  # the same objects under other numbers
            pairs = {*zip(sample.instances[labels > 0], numbers[labels > 0], strict=True)}
            assert len(pairs) == 4
    ids = [a["id"] for a in tables["train"].dataset["annotations"]]
    assert ids == list(range(1, len(ids) + 1))  # 0 means no match to COCO's scorer


def test_categories_and_what_is_said_of_annotations(exported):
    _, out, instances = exported
    for name in ("train", "val"):
        data = open_coco(out, name).dataset
        assert [(c["id"], c["name"]) for c in data["categories"]] == list(enumerate(ODD, start=1))
        assert ("an annotation is one object" in data["info"]["description"]) == instances
    what = json.loads((out / "export.json").read_text())["annotation"]
    assert what.startswith("one object" if instances else "all of a class")


def test_the_panoptic_pictures_give_the_label_map_back(exported):
    samples, out, instances = exported
    tables = {
        name: json.loads((out / "annotations" / f"panoptic_{name}.json").read_text("utf-8"))
        for name in ("train", "val")
    }
    for table in tables.values():
        things = {c["id"]: c["isthing"] for c in table["categories"]}
        assert things == {0: 0, **dict.fromkeys(range(1, 6), int(instances))}
    for sample in samples:
        table = tables[part(sample)]
        (entry,) = (a for a in table["annotations"] if a["image_id"] == sample.request.index)
        assert entry["file_name"] == f"{key(sample)}.png"
        path = out / "annotations" / f"panoptic_{part(sample)}" / entry["file_name"]
        with Image.open(path) as picture:
            colors = np.array(picture).astype(int)
        ids = colors[..., 0] + 256 * colors[..., 1] + 256**2 * colors[..., 2]
        labels = np.full(ids.shape, 255)  # void is what is ignored
        for segment in entry["segments_info"]:
            assert segment["area"] == (ids == segment["id"]).sum() > 0
            labels[ids == segment["id"]] = segment["category_id"]
        assert np.array_equal(labels, sample.mask)
        assert set(np.unique(ids)) == {0, *(s["id"] for s in entry["segments_info"])}


def test_transformers_gives_the_panoptic_label_map_back(exported):
    from transformers import DetrImageProcessorPil

    samples, out, _ = exported
    plain = {"do_resize": False, "do_rescale": False, "do_normalize": False, "do_pad": False}
    read = DetrImageProcessorPil(format="coco_panoptic", do_convert_annotations=False, **plain)
    for sample in samples:
        name = part(sample)
        table = json.loads((out / "annotations" / f"panoptic_{name}.json").read_text("utf-8"))
        (entry,) = (a for a in table["annotations"] if a["image_id"] == sample.request.index)
        with Image.open(out / name / entry["file_name"]) as image:
            masks = out / "annotations" / f"panoptic_{name}"
            given = {"annotations": entry, "masks_path": masks, "return_segmentation_masks": True}
            made = read(image, **given, return_tensors="np")
        assert np.array_equal(made["pixel_values"][0].transpose(1, 2, 0), sample.image)
        target, labels = made["labels"][0], np.full(sample.mask.shape, 255)
        for number, mask in zip(target["class_labels"], target["masks"], strict=True):
            assert (labels[mask > 0] == 255).all()
            labels[mask > 0] = number
        assert np.array_equal(labels, sample.mask)
        assert np.array_equal(target["area"], target["masks"].sum((1, 2)))
        for (left, top, right, bottom), info in zip(
            target["boxes"], entry["segments_info"], strict=True
        ):  # of the outermost pixels' middles
            size = [right - left + 1, bottom - top + 1]
            assert [left, top, *size] == info["bbox"]
