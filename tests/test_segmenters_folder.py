"""ovseg.segmenters.folder: a trained segmenter, written and loaded again."""

import copy
import functools
import json

import pytest
import torch
from acme.segmenter import PixelSegmenter
from toy_data import quiet_trainer

from ovseg.clipart.stream import DrawnScenes
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.modules.segmentation import SegmentationModule
from ovseg.segmenters.folder import load_segmenter, save_segmenter
from ovseg.vocabulary import Vocabulary

IMAGES = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).byte()


class Odd(PixelSegmenter):
    """One whose argument JSON does not have."""

    def __init__(self, num_classes, kinds=frozenset({5})):
        super().__init__(num_classes)


@pytest.fixture
def vocabulary():
    return Vocabulary.load("clipart", "1")


@pytest.fixture
def segmenter(vocabulary):
    torch.manual_seed(0)
    return PixelSegmenter(vocabulary.num_classes, hidden=5)


def test_it_comes_back_with_its_arguments(segmenter, vocabulary, tmp_path):
    folder = tmp_path / "runs" / "segmenter"
    save_segmenter(segmenter, folder, vocabulary, {3, 1})
    loaded = load_segmenter(folder)
    assert loaded.segmenter.init_args == {"hidden": 5} and not loaded.segmenter.training
    assert torch.equal(loaded.segmenter(IMAGES), segmenter(IMAGES))
    assert loaded.keys == [c.key for c in vocabulary.classes]
    assert loaded.trained_on == [vocabulary[1].key, vocabulary[3].key]
    assert [path.name for path in folder.parent.iterdir()] == ["segmenter"]


def test_another_one_takes_its_place_and_has_another_digest(segmenter, vocabulary, tmp_path):
    save_segmenter(segmenter, tmp_path, vocabulary)
    first = load_segmenter(tmp_path)
    assert first.trained_on == first.keys
    with torch.no_grad():
        segmenter.layers[0].weight[0] += 1
    save_segmenter(segmenter, tmp_path, vocabulary)
    assert load_segmenter(tmp_path).digest != first.digest


def test_a_copy_knows_the_arguments_too(segmenter):
    assert copy.deepcopy(segmenter).init_args == {"hidden": 5}
    assert PixelSegmenter(3).init_args == {"hidden": 64}


def test_what_cannot_be_written_or_loaded(segmenter, vocabulary, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="exists and holds no segmenter"):
        save_segmenter(segmenter, tmp_path / "mine", vocabulary)
    for name, text in (("config.json", '{"class_path": "a.B"}'), ("thesis.tex", "x")):
        save_segmenter(segmenter, tmp_path / name, vocabulary)
        (tmp_path / name / name).write_text(text)
        with pytest.raises(ValueError, match="holds (no|more than a) segmenter"):
            save_segmenter(segmenter, tmp_path / name, vocabulary)
        assert (tmp_path / name / name).read_text() == text
    segmenter.init_args = {"hidden": {5}}
    with pytest.raises(ValueError, match="its arguments are not JSON-ready"):
        save_segmenter(segmenter, tmp_path / "new", vocabulary)
    segmenter.init_args = {"hidden": 6}
    save_segmenter(segmenter, tmp_path / "new", vocabulary)
    with pytest.raises(ValueError, match="do not fit its config.json: .*size mismatch"):
        load_segmenter(tmp_path / "new")
    (tmp_path / "new" / "model.safetensors").write_bytes(b"12")
    with pytest.raises(ValueError, match="do not fit its config.json"):
        load_segmenter(tmp_path / "new")
    (tmp_path / "new" / "config.json").write_text(json.dumps({"segmenter": {}}))
    with pytest.raises(ValueError, match="is no segmenter's: it lacks classes"):
        load_segmenter(tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="no segmenter in .*: it has no config.json"):
        load_segmenter(tmp_path / "nowhere")


def test_what_could_not_be_written_is_told_before_the_training(segmenter, vocabulary, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    scenes = DrawnScenes(8, seed=1, classes="seen")
    source = SyntheticDataModule("clipart", "1", 4, train=scenes)
    optimizer = functools.partial(torch.optim.SGD, lr=0.1)
    for make, folder, line in (
        (PixelSegmenter, "mine", "exists and holds no segmenter"),
        (Odd, "new", "an? Odd cannot be written to a folder: its arguments are not JSON-ready"),
    ):
        output = str(tmp_path / folder)
        module = SegmentationModule(make, optimizer, vocabulary=vocabulary, output=output)
        with pytest.raises(ValueError, match=line):
            quiet_trainer(tmp_path, max_epochs=1).fit(module, source)


@pytest.mark.parametrize(
    "part, message",
    [
        ({}, "segmenter must be a class_path, a text, and init_args by name, got {}"),
        ({"class_path": "acme.segmenter.PixelSegmenter", "init_args": 5}, "segmenter must be"),
        (
            {"class_path": "acme.segmenter.PixelSegmenter", "init_args": {"depth": 3}},
            "cannot build the acme.segmenter.PixelSegmenter of .*; has its class changed?",
        ),
    ],
)
def test_values_that_are_none_are_one_line(segmenter, vocabulary, tmp_path, part, message):
    save_segmenter(segmenter, tmp_path / "out", vocabulary)
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"segmenter": part}))
    with pytest.raises(ValueError, match=message):
        load_segmenter(tmp_path / "out")
