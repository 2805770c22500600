"""benchmarks/writer.py writes, starts and reads, and runs."""

import importlib
import json
from pathlib import Path


def test_writer(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    benchmark = importlib.import_module("writer")
    out = tmp_path / "writer.json"
    sizes = ["--samples", "6", "--shard-size", "4", "--batch", "3", "--size", "32"]
    counts = ["--finished", "5", "--stored", "3", "--repeats", "1"]
    benchmark.main([*sizes, *counts, "--out", str(out)])
    result = json.loads(out.read_text())
    assert set(result["samples_per_second"]) == {"predict", "encode"}
    kinds = {"plain", "filtered", "quota", "recounted"}
    assert set(result["seconds_to_the_first_new_sample"]) == kinds
    assert result["seconds_of_reading"]["all"] > 0
