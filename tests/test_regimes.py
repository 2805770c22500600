"""benchmarks/regimes.py: what a segmenter is trained on, compared on the same images."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from ovseg.__main__ import main
from ovseg.compare import Stream
from ovseg.steps import write_text

FOLDER = Path(__file__).parents[1] / "benchmarks"
FACTS = {"name": "mine", "classes": "digest"}


@pytest.fixture
def regimes(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("regimes")


def outcome(seen: int, unseen: int, images: int = 4) -> Stream:
    """A test of two classes in which each image has these intersections and unions of 100."""
    areas = np.tile([[0, seen, unseen], [0, 100, 100], [0, 100, 100]], (images, 1, 1))
    harmonic = 2 * seen * unseen / (seen + unseen)
    scores = {"seen": float(seen), "unseen": float(unseen), "harmonic": harmonic}
    return Stream(FACTS, scores, np.arange(images), areas, np.array([1]), np.array([2]))


def test_every_regime_of_a_run_is_a_step(regimes, tmp_path):
    out = tmp_path / "out"
    steps = regimes.plan(out, {"split": "3", "seed": 2, "scale": 1.0})
    names = [step.name for step in steps]
    assert names[:3] == ["1_annotated", "2_grounding", "images"]
    assert sorted(names[3:]) == sorted([*regimes.REGIMES, "pseudo"])
    assert names.index("c_mixture") < names.index("pseudo") < names.index("s_self_training")
    used = {}
    for step in steps:
        layers = [yaml.safe_load(path.read_text()) for path in step.configs]
        text = json.dumps(layers)
        assert "runs/clipart" not in text
        used[step.name] = text
    assert all(f"{out}/2_grounding/grounder" in used[n] for n in ("2_grounding", "images"))
    assert all("2_grounding" not in used[name] for name in regimes.REGIMES)
    for stream in regimes.ANNOTATED:
        assert f"{out}/1_annotated/{stream}" in used["2_grounding"]
    streams = yaml.safe_load(steps[0].configs[0].read_text())["data"]["init_args"]["predict"]
    assert tuple(streams) == regimes.ANNOTATED
    assert [step.name for step in steps if "--then_test" in step.arguments] == [*regimes.REGIMES]
    streams = yaml.safe_load(steps[2].configs[1].read_text())["data"]["init_args"]["predict"]
    assert [stream["init_args"]["seed"] for stream in streams.values()] == [2061, 2062, 2063]
    for name in ("one", "two", "rich"):
        assert any(f"{out}/images/{name}" in used[regime] for regime in regimes.REGIMES)
    assert f"{out}/c_mixture/segmenter" in used["pseudo"]
    assert f"{out}/pseudo" in used["s_self_training"]


def test_only_the_bound_may_see_masks_of_unseen_classes(regimes, tmp_path):
    for step in regimes.plan(tmp_path, {"split": "1", "seed": 0, "scale": 1.0}):
        if step.name in regimes.REGIMES:
            own = yaml.safe_load(step.configs[-1].read_text())
            allowed = own.get("model", {}).get("init_args", {}).get("unseen_masks", False)
            assert allowed is (step.name == "f_supervised")


def test_means_differences_and_the_gap_by_hand(regimes):
    scores = {
        "a_one_object": (40, 40),
        "b_two_objects": (50, 50),
        "c_mixture": (60, 60),
        "d_with_real": (80, 60),
        "e_rich_prompts": (80, 40),
        "s_self_training": (70, 70),
        "f_supervised": (80, 80),
    }
    runs = {
        f"split-1_seed-{number}": {
            name: outcome(a + number, b + number) for name, (a, b) in scores.items()
        }
        for number in (0, 2)
    }
    result = regimes.summary("both", runs)
    assert result["scores"]["a_one_object"]["seen"] == {
        "mean": 41.0,
        "std": pytest.approx(2**0.5),
    }
    first = result["differences"][0]
    assert (first["one"], first["two"]) == ("a_one_object", "b_two_objects")
    assert first["harmonic"] == {"difference": 10.0, "low": 10.0, "high": 10.0}  # all images alike
    assert result["gap from C to F"] == 20.0
    assert result["closed of it"]["s_self_training"] == 10.0
    harmonic = (2 * 80 * 60 / 140 + 2 * 82 * 62 / 144) / 2
    assert result["closed of it"]["d_with_real"] == pytest.approx(harmonic - 61)


def test_runs_on_the_same_images_are_drawn_together(regimes, monkeypatch):
    monkeypatch.setattr(regimes, "RESAMPLES", 400)
    random = np.random.default_rng(0)
    one, two = outcome(40, 40, images=50), outcome(60, 60, images=50)
    two.areas[:, 0, 1:] = random.integers(100, size=(50, 2))

    def width(*names):
        tests = dict.fromkeys(regimes.REGIMES, one) | {"b_two_objects": two}
        found = regimes.differences("both", dict.fromkeys(names, tests))[0]["harmonic"]
        return found["high"] - found["low"]

    alone = width("split-1_seed-0")
    assert width("split-1_seed-0", "split-2_seed-0", "split-3_seed-0") == pytest.approx(alone)
    assert width("split-1_seed-0", "split-1_seed-1", "split-1_seed-2") < 0.8 * alone


def test_tests_of_other_images_are_refused_by_the_stream_s_name(regimes):
    tests = dict.fromkeys(regimes.REGIMES, outcome(40, 40))
    runs = {"split-1_seed-0": tests | {"b_two_objects": outcome(40, 40, images=5)}}
    with pytest.raises(ValueError, match="different images in stream 'both'"):
        regimes.differences("both", runs)


def test_only_whole_runs_count_and_are_shown(regimes, tmp_path, monkeypatch, capsys):
    for number, left_out in ((1, None), (2, "f_supervised")):
        for name in regimes.REGIMES:
            if name != left_out:
                write_text(tmp_path / f"split-{number}_seed-0" / name / "results.json", "{}")
    tests = {"drawn": outcome(50, 30), "both": outcome(60, 40)}
    monkeypatch.setattr(regimes, "read", lambda folder: tests)
    found = regimes.collect(tmp_path)
    assert {name: list(runs) for name, runs in found.items()} == {
        "both": ["split-1_seed-0"],
        "drawn": ["split-1_seed-0"],
    }
    regimes.show("drawn", regimes.summary("drawn", found["drawn"]), Console(width=120))
    printed = capsys.readouterr().out
    assert "scenes of two objects, 1 runs" in printed
    assert "50.0 ± 0.0" in printed and "+0.0 of the 0.0 from C to F" in printed


def test_the_whole_chain_at_a_small_size(regimes, tmp_path, capsys, monkeypatch):
    """Every command as it is run, in one process, of 48 images and 3 training steps each."""
    out = tmp_path / "out" / "split-1_seed-0"
    alone = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    for step in regimes.plan(out, {"split": "1", "seed": 0, "scale": 0.005}):
        assert main([*step.arguments, *alone]) == 0, step.name
    known = json.loads((out / "pseudo" / "dataset.json").read_text())
    facts = known["annotator"]
    assert facts["others_compete"] is False and len(facts["requested_classes"]) == 20
    monkeypatch.setattr(regimes, "RESAMPLES", 100)
    monkeypatch.setattr("sys.argv", ["regimes.py", "--show", "--out", str(out.parent)])
    regimes.main()
    assert "scenes of one and two objects, 1 runs" in capsys.readouterr().out
    result = json.loads((out.parent / "regimes.json").read_text())
    assert set(result) == {"both", "drawn"} and result["both"]["runs"] == [out.name]
