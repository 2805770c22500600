"""The quickstart: its plan, and its copies of the configs."""

import json
import re
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from ovseg import quickstart
from ovseg.__main__ import main
from ovseg.clipart.training.world import SAMPLER
from ovseg.quickstart import config, fill, plan, write_configs
from ovseg.report.numbers import COLUMNS
from ovseg.steps import write_text

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
    folder = config("1_annotated").parent
    for path in sorted(folder.glob("*.yaml")):
        if path.stem not in ("2_attention", "3_guided"):  # streams of other files once more
            seeds += re.findall(r"\bseed: (\d+)", path.read_text(encoding="utf-8"))
    assert len(seeds) == len(set(seeds)) == 10
    regimes = {
        path.stem: set(re.findall(r"\bseed: (\d+)", path.read_text(encoding="utf-8")))
        for path in (folder / "regimes").glob("*.yaml")
    }
    assert regimes.pop("f_supervised") == {"42"} <= set(seeds)  # the quickstart's own bound
    assert regimes.pop("test") == {"41", "43"}  # the quickstart's own column and another
    assert regimes["1_images"] == {"61", "62", "63"}
    assert not set(seeds) & set().union(*regimes.values())


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


def test_a_damaged_run_is_named(tmp_path, capsys):
    write_text(tmp_path / "quickstart.json", "")
    assert main(["quickstart", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/quickstart.json is no quickstart.json" in error and error.count("\n") == 1


def test_nothing_is_written_before_the_folder_is_held(tmp_path, capfd, monkeypatch):
    there = []

    @contextmanager
    def hold(folder):
        there.extend(folder.rglob("*"))
        write_text(folder / "quickstart.json", json.dumps({**PLAIN, "seed": 5}))  # meanwhile
        yield 0

    monkeypatch.setattr(quickstart, "locked", hold)
    assert main(["quickstart", "--out", str(tmp_path / "out")]) == 2
    assert "holds a run with" in capfd.readouterr().err
    assert not there and not (tmp_path / "out" / "configs").exists()


def test_an_unwritable_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["quickstart", "--out", str(tmp_path / "file" / "out")]) == 2
    error = capsys.readouterr().err
    assert "cannot write to" in error and error.count("\n") == 1


def test_a_failing_stage_gives_its_exit_code(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(
        quickstart, "plan", lambda out: [quickstart.Step("a", "stage 0", "a", ("nonsense",))]
    )
    before = signal.getsignal(signal.SIGTERM)
    assert main(["quickstart", "--out", str(tmp_path)]) == 2
    assert signal.getsignal(signal.SIGTERM) == before
    printed = capfd.readouterr()
    assert "stage 0 ended with exit code 2" in printed.out
    assert "no verb 'nonsense'" in printed.err


def test_readme_shows_the_commands_of_the_plan(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    shown = readme.splitlines()
    for step in plan(tmp_path)[:-1]:
        command = " ".join(("ovseg", *step.arguments))
        command = command.replace(f"{tmp_path}/configs", "configs/clipart")
        assert command.replace(str(tmp_path), "runs/clipart") in shown
