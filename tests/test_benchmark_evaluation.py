import importlib
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def evaluation(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("evaluation")


def test_what_agrees_with_mmsegmentation_and_what_does_not(evaluation):
    shape = (21, 16, 24)
    parts = list(evaluation.batches(*shape))
    assert [tuple(labels.shape) for _, labels in parts] == [(16, 16, 24), (5, 16, 24)]
    for ids in (torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])):
        assert set(ids.unique().tolist()) - {255} == set(range(20))
    found = {form: evaluation.measure(form, shape) for form in evaluation.FORMS}
    iou = {form: torch.tensor(one["iou"]) for form, one in found.items()}
    assert (
        iou["loop"].isnan().nonzero().tolist() == [[20]] == iou["ours"].isnan().nonzero().tolist()
    )
    torch.testing.assert_close(iou["ours"][:20], iou["loop"][:20], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(iou["jaccard"][:20], iou["loop"][:20], rtol=1e-6, atol=1e-6)
    assert iou["jaccard"][20] == 0  # a class that is nowhere lowers the mean
    assert (iou["mean_iou"][:20] - iou["loop"][:20]).abs().max() > 1e-3  # a mean over images
    assert all(one["seconds"] > 0 and one["mib"] >= 0 for one in found.values())
