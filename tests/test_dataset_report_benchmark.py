"""benchmarks/dataset_report.py writes a dataset that can be read, and runs."""

import importlib
import json
from pathlib import Path

import numpy as np

from ovseg.data.shards import ShardStream
from ovseg.vocabulary import Vocabulary


def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("dataset_report")


def test_its_dataset_is_one(monkeypatch, tmp_path):
    made = benchmark(monkeypatch)
    monkeypatch.setattr(made, "VARIANTS", 5)
    made.write(tmp_path, count=7, size=32, shard_size=3)
    stream = ShardStream(str(tmp_path))
    stream.bind(Vocabulary.load("clipart"))
    images = [stream.sample(place).image for place in range(len(stream))]
    assert len(np.unique(images, axis=0)) == 5
    assert [stream.sample(place).request.index for place in range(7)] == list(range(7))


def test_it_measures(monkeypatch, tmp_path):
    out = tmp_path / "report.json"
    benchmark(monkeypatch).main(["--samples", "5", "--size", "32", "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["samples"] == 5 and result["seconds"][0] > 0
    assert result["peak_mb"] > 10 and result["page_mb"] > 0
