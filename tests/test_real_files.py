"""ovseg.data.real_files: files cut short, empty or scrambled, alone and in a dataset."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_real import config, devkit, stream  # noqa: F401 - the fixture

from ovseg.data.real_files import ReadingStep, check_list, check_mode, reading

LIST = "ImageSets/Segmentation/val.txt"


@pytest.fixture
def root(devkit, tmp_path) -> Path:  # noqa: F811 - the fixture
    """Copy the three photos and put noise, which compresses badly, in the place of one."""
    copy = Path(shutil.copytree(devkit, tmp_path / "VOC2012"))
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(copy / "JPEGImages/p1.jpg", quality=95)
    Image.fromarray(noise[..., 0] % 16).save(copy / "SegmentationClass/p1.png")
    return copy


def cut(path: Path, size: int) -> str:
    """Cut a file; return what is to be said of it."""
    data = path.read_bytes()
    assert len(data) > size
    path.write_bytes(data[:size])
    return f"{path} cannot be read: it is empty or damaged; fetch it again"


@pytest.mark.parametrize("size", [0, 10, 3000])
def test_a_damaged_image_is_named(root, size):
    said = cut(root / "JPEGImages/p1.jpg", size)
    real = stream(root)
    assert real[[0]].images.shape == (1, 3, 20, 30)
    with pytest.raises(ValueError) as error:
        real[[0, 1]]
    assert str(error.value) == said


@pytest.mark.parametrize("size", [0, 20, 1000])
def test_a_damaged_label_map_is_named(root, size):
    said = cut(root / "SegmentationClass/p1.png", size)
    with pytest.raises(ValueError) as error:
        stream(root)[[1]]
    assert str(error.value) == said
    with pytest.raises(ValueError) as error:
        stream(root, leave_out_unseen=True)
    assert str(error.value) == said


def test_the_mode_is_read_of_a_whole_header(tmp_path):
    path = tmp_path / "a.png"
    Image.new("P", (3, 2)).save(path)
    check_mode(str(path))
    said = cut(path, 20)
    with pytest.raises(ValueError) as error:
        check_mode(str(path))
    assert str(error.value) == said


@pytest.mark.parametrize("error", [AssertionError("no"), OSError("cut"), SyntaxError("broken")])
def test_a_step_names_its_file(error):
    def step(facts):
        if facts["img_path"] == "bad":
            raise error
        return {**facts, "img": 1}

    load = ReadingStep(step, "img_path")
    assert load({"img_path": "good"}) == {"img_path": "good", "img": 1}
    with pytest.raises(ValueError, match="^bad cannot be read: .* fetch it again$"):
        load({"img_path": "bad"})


def test_what_is_no_damage_is_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.png"), reading("none.png"):
        open(tmp_path / "none.png")
    for error in (MemoryError(), Image.DecompressionBombError("large"), UserWarning("old")):
        with pytest.raises(type(error)), reading("a.png"):
            raise error


def test_errors_of_transforms_are_not_the_files(root):
    def stumble(facts):
        raise AssertionError("a transform's own")

    real = stream(root)
    real.dataset.pipeline.transforms.insert(2, stumble)
    with pytest.raises(AssertionError, match="a transform's own"):
        real[[0]]


def test_workers_can_be_given_it(root):
    real = stream(root)
    again = pickle.loads(pickle.dumps(real))
    assert again[[0]].labels.equal(real[[0]].labels)


@pytest.mark.parametrize("blank", ["", "\n", " \r\n\n"])
def test_an_empty_list_is_named(root, blank):
    (root / LIST).write_text(blank)
    with pytest.raises(ValueError) as error:
        stream(root)
    assert f"the list {root / LIST} is empty" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_of_other_names_is_not_empty(root):
    (root / LIST).write_text("q0\nq1\n")
    check_list(config(root))
    with pytest.raises(FileNotFoundError, match="2 of the .* missing, the first is .*q0.jpg"):
        stream(root)


def test_without_a_list_there_is_nothing_to_check(tmp_path):
    for dataset in ({}, {"data_root": str(tmp_path)}, {"data_root": None, "ann_file": ""}):
        check_list(dataset)
    check_list({"data_root": str(tmp_path), "ann_file": "none.txt"})
    (tmp_path / "none.txt").touch()
    with pytest.raises(ValueError, match="none.txt is empty"):
        check_list({"data_root": "elsewhere", "ann_file": str(tmp_path / "none.txt")})
