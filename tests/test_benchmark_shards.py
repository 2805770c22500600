"""benchmarks/shards.py reads the same pixels both ways, and runs."""

import importlib
import json
from pathlib import Path


def test_shards_against_files(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    benchmark = importlib.import_module("shards")
    out = tmp_path / "shards.json"
    sizes = ["--samples", "12", "--shard-size", "5", "--batch", "4", "--size", "32"]
    benchmark.main([*sizes, "--repeats", "2", "--out", str(out)])
    result = json.loads(out.read_text())
    assert set(result["samples_per_second"]) == {"shards", "files"}
    assert result["shards_over_files"]["median"] > 0
