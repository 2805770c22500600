"""benchmarks/shards.py reads the same samples in all ways, and runs."""

import importlib
import json
from pathlib import Path

import pytest


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's file
def test_shards_against_others(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    benchmark = importlib.import_module("shards")
    out = tmp_path / "shards.json"
    sizes = ["--samples", "12", "--shard-size", "5", "--batch", "4", "--size", "32"]
    benchmark.main([*sizes, "--repeats", "2", "--out", str(out)])
    result = json.loads(out.read_text())
    assert len(result["samples_per_second"]) == 7
    assert all(ratio["median"] > 0 for ratio in result["shards_over"].values())
