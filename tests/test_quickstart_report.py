"""The report of a quickstart, made from finished stages."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from acme.annotator import ColorAnnotator
from acme.backbone import ToyBackbone
from toy_data import data_module, live_stream, write_dataset

from ovseg import quickstart_report
from ovseg.__main__ import main
from ovseg.quickstart import run_settings
from ovseg.report import page
from ovseg.report.numbers import COLUMNS, METHODS
from ovseg.report.pictures import Picture
from ovseg.steps import write_text
from ovseg.vocabulary import Vocabulary

PLAIN = {"split": "1", "seed": 0, "scale": 1.0}


def grounding_results(value: float) -> dict:
    """What `test` of a grounding module writes, each number told apart by ``value``."""
    controls = ("swapped", "foreground", "ceiling", "random_names", "synonyms")
    return {
        column: {
            "miou": value + place,
            "miou_images": value + place + 0.5,
            "choice": None if column.startswith("one") else value + place,
            "images": 4,
            "presence": value + 20 + place,
            **{
                control: {"miou": 10.0 * (n + 1) + place, "miou_images": 1.0}
                for n, control in enumerate(controls)
            },
        }
        for place, column in enumerate(COLUMNS)
    }


def segmentation_results(vocabulary: Vocabulary, value: float) -> dict:
    scores = {"seen": value, "unseen": value / 2, "harmonic": value / 1.5, "mean": value}
    per_class = {c.key: value for c in vocabulary.classes}
    return {"drawn": {**scores, "background": 90.0, "per_class": per_class}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder as the stages leave it, made by the toy backbone."""
    out = tmp_path_factory.mktemp("run")
    vocabulary = Vocabulary.load("clipart", "1")
    write_text(out / "quickstart.json", json.dumps(PLAIN))
    folders = ["1_annotated/train", "3_synthetic", *(f"1_annotated/{c}" for c in COLUMNS)]
    for seed, folder in enumerate(folders):
        stream = live_stream(8, seed=seed)
        write_dataset(
            out / folder, data_module(4, ToyBackbone(forget=0.2), predict={"data": stream})
        )
    for folder, results in (
        ("2_grounding", grounding_results(70.0)),
        ("2_fusion", grounding_results(60.0)),
        ("2_attention", grounding_results(40.0)),
        ("4_segmenter", segmentation_results(vocabulary, 60.0)),
        ("4_supervised", segmentation_results(vocabulary, 80.0)),
    ):
        write_text(out / folder / "results.json", json.dumps(results))
    image, labels = np.full((32, 32, 3), 99, np.uint8), np.eye(32, dtype=np.int64)
    picture = Picture(image, {"truth": labels, "prediction": labels * 2}, "a photo of a car")
    for column in COLUMNS:
        picture.save(out / "2_grounding" / "pictures" / column, "000000")
    for folder in ("4_segmenter", "4_supervised"):
        picture.save(out / folder / "pictures" / "drawn", "000000")
    record = {"stage": "1_annotated", "seconds": 3.0, "started": 1.0}
    write_text(out / "steps" / "a.json", json.dumps(record))
    return out


@pytest.fixture(scope="module")
def report(finished):
    vocabulary = Vocabulary.load("clipart", "1")
    oracle = ColorAnnotator("all")
    oracle.bind(vocabulary)
    return quickstart_report.collect(finished, vocabulary, oracle, quality=93.25)


def test_report_has_every_number(report):
    assert (report["split"], report["annotator"]) == ("1", {"miou": 93.25})
    assert (len(report["seen"]), len(report["unseen"])) == (15, 5)
    assert list(report["grounding"]) == list(METHODS) == list(report["choice"])
    assert report["grounding"]["probe"] == {
        "one_object": {
            "seen": 70.0,
            "seen_images": 70.5,
            "unseen": 71.0,
            "unseen_images": 71.5,
        },
        "two_objects": {
            "seen": 72.0,
            "seen_images": 72.5,
            "mixed": 73.0,
            "mixed_images": 73.5,
            "unseen": 74.0,
            "unseen_images": 74.5,
        },
    }
    assert report["grounding"]["fusion"]["two_objects"]["unseen"] == 64.0
    assert report["grounding"]["attention"]["two_objects"]["unseen"] == 44.0
    assert report["grounding"]["random_names"]["two_objects"]["seen"] == 42.0
    assert report["grounding"]["swapped"]["two_objects"]["seen"] == 12.0
    assert report["grounding"]["foreground"]["two_objects"]["seen"] == 22.0
    assert report["grounding"]["ceiling"]["one_object"]["unseen"] == 31.0
    assert report["choice"]["probe"] == {"two_seen": 72.0, "two_unseen": 74.0}
    presence = {"one_seen": 80.0, "one_unseen": 81.0, "two_seen": 82.0}
    presence |= {"two_mixed": 83.0, "two_unseen": 84.0}
    assert report["presence"] == {
        "probe": {column: value + 10 for column, value in presence.items()},
        "fusion": presence,
    }
    assert report["segmentation"]["supervised"]["harmonic"] == pytest.approx(80 / 1.5)
    assert set(report["segmentation"]["synthetic"]) == {
        *("seen", "unseen", "harmonic", "background", "per_class")
    }
    assert report["seconds"] == {"1_annotated": 3.0, "total": 3.0}
    json.dumps(report, allow_nan=False)


def test_report_counts_what_was_left_out(finished, report):
    manifest = json.loads((finished / "3_synthetic" / "dataset.json").read_text())
    assert report["counts"]["synthetic images generated"] == manifest["counts"]["samples"] == 8
    left_out = report["excluded"]["synthetic, by the grounding module"]
    assert report["counts"]["synthetic images, all names found"] == 8 - 8 * left_out / 100
    assert set(COLUMNS) < set(report["excluded"])


def test_labels_that_an_annotator_made_equal_its_own(report):
    assert report["labels_of_stage_3"]["seen"] == 100.0
    assert report["labels_of_stage_3"]["unseen"] in (100.0, None)
    assert report["excluded"]["synthetic, by the annotator"] == 0.0


def test_page_of_a_finished_run(finished, report):
    vocabulary = Vocabulary.load("clipart", "1")
    html = page.render(report, quickstart_report.gallery(finished), vocabulary)
    assert html.count("a photo of a car") == 2 * len(COLUMNS)  # caption and alternative text
    assert "synthetic: bus" in html and "supervised: bus" in html and "truth: car" in html


def test_a_missing_result_says_how_to_get_it(tmp_path):
    for call in (quickstart_report.make, run_settings, _collect):
        with pytest.raises(FileNotFoundError, match=f"run `ovseg quickstart --out {tmp_path}`"):
            call(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    write_text(tmp_path / "quickstart.json", "")
    with pytest.raises(ValueError, match=f"{tmp_path}/quickstart.json is no quickstart.json"):
        quickstart_report.make(tmp_path)
    write_text(tmp_path / "2_grounding" / "results.json", "{")
    with pytest.raises(ValueError, match="2_grounding/results.json is no .*delete .*2_grounding.j"):
        _collect(tmp_path)


def _collect(folder):
    quickstart_report.collect(folder, Vocabulary.load("clipart", "1"), None, quality=0.0)


def test_the_readme_s_picture(finished, tmp_path, capsys):
    tool = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "output_picture.py"))["main"]
    out = tmp_path / "picture.png"
    for run, more, line in (
        (tmp_path / "none", [], "run `ovseg quickstart --out"),
        (tmp_path, [], f"no pictures in {tmp_path}/2_grounding/pictures"),
        (finished, ["--per-row", "0"], "--per-row must be >= 1, got 0"),
    ):
        write_text(tmp_path / "quickstart.json", json.dumps(PLAIN))
        assert tool(["--run", str(run), "--out", str(out), *more]) == 2
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1 and not out.exists()
    assert tool(["--run", str(finished), "--out", str(out)]) == 0 and out.is_file()


def test_the_verb_makes_it_again(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(quickstart_report, "make", made.append)
    write_text(tmp_path / "quickstart.json", json.dumps(PLAIN))
    assert main(["report", str(tmp_path)]) == 0 and made == [tmp_path]
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "a.html")]) == 2
    assert "--out is for datasets" in capsys.readouterr().err and len(made) == 1
