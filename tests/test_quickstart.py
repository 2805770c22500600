"""The quickstart: its plan, its copies of the configs, and its report from finished stages."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from acme.annotator import ColorAnnotator
from acme.backbone import ToyBackbone
from toy_data import data_module, live_stream, write_dataset

from ovseg import quickstart, quickstart_report
from ovseg.__main__ import main
from ovseg.clipart.training.world import SAMPLER
from ovseg.quickstart import config, fill, plan, write_configs
from ovseg.report import page
from ovseg.report.numbers import COLUMNS, METHODS
from ovseg.report.pictures import Picture
from ovseg.steps import write_text
from ovseg.vocabulary import Vocabulary

PLAIN = {"split": "1", "seed": 0, "scale": 1.0}


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def strings(value):
    if isinstance(value, dict):
        return [s for item in value.values() for s in strings(item)]
    if isinstance(value, list):
        return [s for item in value for s in strings(item)]
    return [value] if isinstance(value, str) else []


def test_copies_say_what_the_shipped_configs_say(tmp_path):
    write_configs(tmp_path, PLAIN)
    copies = sorted((tmp_path / "configs").rglob("*.yaml"))
    assert len(copies) == 7
    for copy in copies:
        name = copy.relative_to(tmp_path / "configs").with_suffix("").as_posix()
        text = config(name).read_text(encoding="utf-8")
        assert read(copy) == yaml.safe_load(text.replace("runs/clipart", str(tmp_path)))


def test_shipped_sizes_are_those_of_the_protocol():
    streams = read(config("1_annotated"))["data"]["init_args"]["predict"]
    for column in COLUMNS:
        layer = streams[column]["init_args"]
        test = read(config("2_grounding"))["data"]["init_args"]["test"][column]["init_args"]
        assert layer["size"] > test["limit"] == 200
        assert layer["annotator"]["init_args"]["classes"] == "all"
    first = streams["train"]["init_args"]
    assert first["annotator"]["init_args"]["classes"] == "seen"
    assert streams["val_one_seen"]["init_args"]["annotator"]["init_args"]["classes"] == "seen"
    assert first["prompts"]["init_args"] == {"objects": {1: 1, 2: 2}, "classes": "seen"}
    third = read(config("3_synthetic"))["data"]["init_args"]["predict"]["synthetic"]["init_args"]
    assert third["prompts"]["init_args"] == {"objects": {1: 1, 2: 3}, "classes": "all"}
    fourth = read(config("4_segmenter"))["data"]["init_args"]
    drawn = read(config("4_supervised"))["data"]["init_args"]["train"]["init_args"]
    assert drawn["size"] == fourth["train"]["init_args"]["limit"] < third["size"]
    test = fourth["test"]["drawn"]["init_args"]
    assert test["size"] >= 500 and test["objects"] == [2]
    assert test["seed"] != drawn["seed"]


def test_all_stages_share_one_backbone():
    stages = ("1_annotated", "2_grounding", "2_attention", "3_synthetic")
    backbones = [read(config(stage))["data"]["init_args"]["backbone"] for stage in stages]
    assert all(SAMPLER.items() <= backbone["init_args"].items() for backbone in backbones)
    for backbone in backbones:  # what is read is each reader's choice
        backbone["init_args"] = {
            key: value
            for key, value in backbone["init_args"].items()
            if key not in ("attention", "probes")
        }
    assert all(backbone == backbones[0] for backbone in backbones)


def test_no_two_streams_share_a_seed():
    seeds = []
    for path in sorted(config("1_annotated").parent.rglob("*.yaml")):
        if path.stem != "2_attention":
            seeds += re.findall(r"\bseed: (\d+)", path.read_text(encoding="utf-8"))
    assert len(seeds) == len(set(seeds)) == 10


def test_fill_sets_what_a_run_is(tmp_path):
    shipped = {
        "seed_everything": 0,
        "data": {"split": "1", "threads": 2, "seed": 7, "size": 1000, "batch_size": 32},
        "trainer": {"max_steps": 400, "callbacks": [{"dirpath": "runs/clipart/x"}]},
        "streams": [{"size": 60, "limit": 20}, {"path": "elsewhere/runs/clipart"}],
    }
    assert fill(shipped, tmp_path, split="3", seed=2, scale=0.1) == {
        "seed_everything": 2,
        "data": {"split": "3", "threads": 2, "seed": 2007, "size": 100, "batch_size": 8},
        "trainer": {"max_steps": 40, "callbacks": [{"dirpath": f"{tmp_path}/x"}]},
        "streams": [{"size": 48, "limit": 20}, {"path": "elsewhere/runs/clipart"}],
    }


def test_plan_runs_every_config_and_is_unique(tmp_path):
    steps = plan(tmp_path)
    assert len({step.name for step in steps}) == len(steps) == 8
    verbs = [step.arguments[0] for step in steps]
    assert verbs == "predict fit fit validate predict fit fit report".split()
    assert [step.name for step in steps if "--then_test" in step.arguments] == [
        *("2_grounding", "2_fusion", "2_attention"),
        *("4_segmenter", "4_supervised"),
    ]
    used = {path.relative_to(tmp_path / "configs") for step in steps for path in step.configs}
    write_configs(tmp_path, PLAIN)
    folder = tmp_path / "configs"
    assert used == {path.relative_to(folder) for path in folder.rglob("*.yaml")}
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages == ["1_annotated", "2_grounding", "3_synthetic", "4_segmenter", "report"]


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--split", "9"], "no split '9'; choose one of 1, 2, 3"),
        (["--seed", "-1"], "--seed must be >= 0, got -1"),
        (["--scale", "0"], "--scale must be a positive number, got 0.0"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, capsys, arguments, line):
    assert main(["quickstart", "--out", str(tmp_path / "new"), *arguments]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_another_run_s_folder_is_refused(tmp_path, capsys):
    write_text(tmp_path / "quickstart.json", json.dumps({**PLAIN, "seed": 5}))
    assert main(["quickstart", "--out", str(tmp_path)]) == 2
    assert "holds a run with" in capsys.readouterr().err


def test_an_unwritable_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["quickstart", "--out", str(tmp_path / "file" / "out")]) == 2
    error = capsys.readouterr().err
    assert "cannot write to" in error and error.count("\n") == 1


def test_a_failing_stage_gives_its_exit_code(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(
        quickstart, "plan", lambda out: [quickstart.Step("a", "stage 0", "a", ("nonsense",))]
    )
    assert main(["quickstart", "--out", str(tmp_path)]) == 2
    printed = capfd.readouterr()
    assert "stage 0 ended with exit code 2" in printed.out
    assert "no verb 'nonsense'" in printed.err


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
    with pytest.raises(FileNotFoundError, match="run `ovseg quickstart --out"):
        quickstart_report.collect(tmp_path, Vocabulary.load("clipart", "1"), None, quality=0.0)


def test_the_verb_makes_it_again(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(quickstart_report, "make", made.append)
    write_text(tmp_path / "quickstart.json", json.dumps(PLAIN))
    assert main(["report", str(tmp_path)]) == 0 and made == [tmp_path]
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "a.html")]) == 2
    assert "--out is for datasets" in capsys.readouterr().err and len(made) == 1


def test_readme_shows_the_commands_of_the_plan(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    shown = readme.splitlines()
    for step in plan(tmp_path)[:-1]:
        command = " ".join(("ovseg", *step.arguments))
        command = command.replace(f"{tmp_path}/configs", "configs/clipart")
        assert command.replace(str(tmp_path), "runs/clipart") in shown
