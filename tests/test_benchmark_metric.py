import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def metric(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("metric")


def test_the_three_forms_score_alike(metric):
    maps = metric.label_maps(20, 19, 30, "cpu")
    assert maps[0].shape == (20, 19, 30) and (maps[1] == 255).any()
    by_loop = metric.loop(*maps).double()
    assert 0.4 < by_loop.mean() < 0.9  # neither trivial nor random
    torch.testing.assert_close(metric.ours(*maps), by_loop, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(metric.bincount(*maps).double(), by_loop, rtol=1e-6, atol=1e-6)


def test_it_runs(metric, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(metric, "SETS", {"tiny": (20, 16, 24)})
    out = tmp_path / "metric.json"
    monkeypatch.setattr(sys, "argv", ["metric.py", "--repeats", "2", "--out", str(out)])
    metric.main()
    result = json.loads(out.read_text())
    assert result["tiny"]["loop_over_ours"]["median"] > 0
    assert json.loads(capsys.readouterr().out) == result
