"""benchmarks/: what they compare is the same work, and they run."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from ovseg.backbones.taps import SD1_TAPS
from ovseg.data.shards import ShardStream
from ovseg.grounders.fusion import FusionGrounder
from ovseg.grounders.probe import ProbeGrounder
from ovseg.modules.grounding import GroundingModule
from ovseg.report.numbers import COLUMNS
from ovseg.structures import FeatureSpec

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_medians_and_ratios(benchmark):
    common = benchmark("common")
    assert common.spread([3.0, 1.0, 2.00004]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert common.ratios([2.0, 9.0, 8.0], [1.0, 3.0, 2.0])["median"] == 3.0
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = common.interleave(cases, 2)
    assert calls == list("ababab") and [len(s) for s in seconds.values()] == [2, 2]


def test_the_literal_form_is_the_same_function(benchmark):
    literal_fusion, fusion_head = benchmark("literal_fusion"), benchmark("fusion_head")
    rows = [(8, stride) for _, stride in fusion_head.TABLE]
    spec = FeatureSpec(dict(zip(SD1_TAPS, rows, strict=True)), branches=2)
    features, entities, target = fusion_head.inputs(spec, 2, 2, 128, "cpu")
    features.maps = {tap: values.double() for tap, values in features.maps.items()}
    entities.text, target = entities.text.double(), target.double()
    torch.manual_seed(0)
    ours = FusionGrounder(spec, 768).double()
    literal = literal_fusion.LiteralFusion(spec).double()
    literal_fusion.copy_weights(ours, literal)
    counts = [sum(p.numel() for p in head.parameters()) for head in (ours, literal)]
    assert counts[0] == counts[1]
    torch.testing.assert_close(
        ours(features, entities), literal(features, entities), atol=1e-8, rtol=1e-6
    )
    for head in (ours, literal):
        fusion_head.step(head, features, entities, target)
    torch.testing.assert_close(
        ours.projections[0].weight.grad, literal.low_conv.weight.grad, atol=1e-8, rtol=1e-6
    )


def test_the_papers_table(benchmark):
    table = benchmark("fusion_head").TABLE
    assert [sum(c for c, s in table if s == stride) for stride in (64, 32, 16, 8)] == [
        *(7680, 7040, 4160, 2560)
    ]


def test_sampling_runs(benchmark, tiny_pipeline, tmp_path):
    out = tmp_path / "results" / "sampling.json"
    arguments = ["--model", tiny_pipeline, "--repeats", "1", "--steps", "3", "--image-steps", "2"]
    benchmark("sampling").main([*arguments, "--batch", "2", "--device", "cpu", "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["training_step"]["times_faster"]["median"] > 0
    assert set(result["images"]["per_second"]) == {"batch 1", "batch 2"}
    assert result["machine"]["threads"] >= 1


def test_ablations_change_arguments_that_exist(benchmark, tmp_path):
    ablations = benchmark("ablations")
    steps = ablations.plan(tmp_path / "run", tmp_path / "out")
    assert len(steps) == 2 * len(ablations.VARIANTS) == len({step.name for step in steps})
    for step in steps:
        overlay = yaml.safe_load(step.configs[1].read_text(encoding="utf-8"))
        module = overlay["model"]["init_args"]
        assert module["output"] == str(
            tmp_path / "out" / step.name.removesuffix("/test") / "grounder"
        )
        assert module.keys() <= inspect.signature(GroundingModule).parameters.keys()
        head = module.get("grounder", {}).get("init_args", {})
        assert head.keys() <= inspect.signature(ProbeGrounder).parameters.keys()
        stream = overlay.get("data", {}).get("init_args", {}).get("train", {}).get("init_args", {})
        assert stream.keys() <= inspect.signature(ShardStream).parameters.keys()


def test_ablations_table_and_plot(benchmark, tmp_path, capsys):
    ablations = benchmark("ablations")
    for number, name in enumerate(ablations.VARIANTS):
        results = {column: {"miou": 50.0 + number, "presence": 90.0} for column in COLUMNS}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    table = ablations.collect(tmp_path)
    assert table["no_probes"]["two_unseen"] == 51.0 and table["dice"]["presence"] == 90.0
    ablations.show(table, Console(width=200))
    assert "with Dice loss" in capsys.readouterr().out
    ablations.plot(table, tmp_path / "ablations.png")
    assert (tmp_path / "ablations.png").stat().st_size > 10_000
