"""benchmarks/grounding_cost.py: both sides do the same sampling, and it runs."""

from __future__ import annotations

import importlib
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from ovseg.backbones.taps import SD1_TAPS

# diffusers' own pipeline: its schedulers do what numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("grounding_cost")


def arguments(model: str | None, size: str = "clipart", compiled: str | None = None) -> Namespace:
    common = {"head": "fusion", "steps": 3, "dtype": "float32", "device": "cpu"}
    return Namespace(model=model, size=size, compile=compiled, **common)


def test_both_sides_make_the_same_images(benchmark, tiny_pipeline):
    asked = arguments(tiny_pipeline)
    options = benchmark.options_of(asked)
    ours, theirs = (make(options, asked)(2) for make in (benchmark.grounded, benchmark.alone))
    assert len(ours) == len(theirs) == 2
    for one, other in zip(ours, theirs, strict=True):
        gap = np.asarray(one).astype(int) - np.asarray(other)
        assert abs(gap).max() <= 1 and np.asarray(one).std() > 1


def test_sizes_are_those_of_the_shipped_configurations(benchmark):
    options = benchmark.options_of(arguments("folder", "sd15", "inductor"))
    assert tuple(options["taps"]) == SD1_TAPS and options["tap_steps"] == [1]
    assert options["compile"] == {"backend": "inductor"}
    assert (options["model"], options["revision"], options["variant"]) == ("folder", None, None)
    real = benchmark.options_of(arguments("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"))
    assert real["variant"] == "fp16" and real["compile"] is False and real["steps"] == 3


def test_the_cost_by_hand(benchmark):
    seconds = {"pipeline": [10.0], "plain call": [1.0], "tapped call": [1.25], "masks": [0.75]}
    assert benchmark.percent(seconds, steps=50) == [10.0]  # 1 second on top of 10
    assert benchmark.percent(seconds, steps=40) == [5.0]  # ten more steps would take 10 seconds


def test_it_runs(benchmark, tiny_pipeline, tmp_path):
    out = tmp_path / "results" / "cost.json"
    asked = ["--model", tiny_pipeline, "--batches", "2", "--steps", "2", "--repeats", "1"]
    benchmark.main([*asked, "--device", "cpu", "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["steps"] == 2 and result["head"] == "probe"
    found = result["batches"]["batch 2"]
    assert found["grounded_over_pipeline"]["median"] > 0
    assert set(found["seconds"]) == {"pipeline", "grounded", "plain call", "tapped call", "masks"}
    assert set(found["images_per_second"]) == set(found["peak_mb"]) == {"pipeline", "grounded"}
    assert all(100 < mb < 4096 for mb in found["peak_mb"].values())
