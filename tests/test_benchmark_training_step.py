import importlib
import json
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def training_step(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("training_step")


def test_all_forms_learn_the_same(training_step):
    segmenter = training_step.network_of("deeplabv3plus_small")
    batches = training_step.batches_of(3, 2, 32)
    assert [tuple(part.shape) for part in batches[0]] == [(2, 3, 32, 32), (2, 32, 32)]
    assert (batches[0][1] == 255).any()
    weights = {}
    for form in training_step.FORMS:
        seconds, weights[form] = training_step.train(form, segmenter, batches, "cpu")
        assert seconds > 0
    assert training_step.compare(weights) < 1e-5
    before = segmenter.model.state_dict()
    key = "decode_head.conv_seg.weight"
    assert not torch.equal(before[key], weights["ours"][key])
    weights["runner"] = before
    with pytest.raises(SystemExit, match="runner has not learnt what bare has"):
        training_step.compare(weights)


def test_it_runs(training_step, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(training_step, "SETS", {"cpu": {"deeplabv3plus_small": (2, 32, 1)}})
    out = tmp_path / "training_step.json"
    training_step.main(["--repeats", "1", "--device", "cpu", "--out", str(out)])
    result = json.loads(out.read_text())
    small = result["deeplabv3plus_small"]
    assert small["ours_over_bare"]["median"] > 0 and small["runner_over_ours"]["median"] > 0
    assert json.loads(capsys.readouterr().out) == result
