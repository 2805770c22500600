"""ovseg.clipart.training.world: numbers against bars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ovseg.clipart.training import STAGES
from ovseg.clipart.training.world import VERSION, Verdict, digest, plot, show, verdicts


def measured() -> dict:
    return {
        "annotator": {"miou": 95.0, "per_class": {"cat": 84.9, "key": 99.0}},
        "one_object": {"good": 95.0, "confused": 5.0},
        "two_objects": {"good": 84.9, "confused": 5.1},
        "copying": {"generated": 3.9, "held_out": 3.0},
        "right_color": 91.0,
        "language": {
            "closest": [["boat", "cake", 0.6]],
            "1": {"explained": 90.0, "retrieved": 59.0},
            "2": {"explained": 1.0, "retrieved": 80.0},
        },
    }


def test_verdicts_by_hand():
    found = verdicts(measured())
    assert [v.passed for v in found] == [
        *(True, False, True, False),  # the worst class, two objects
        *(True, False, True, True),  # confusion of two objects
        *(False, True),  # split 1
    ]
    assert found[7].value == pytest.approx(130.0)


def test_at_least_and_at_most_include_the_bar():
    assert Verdict("a", 5.0, 5.0).passed and Verdict("a", 5.0, 5.0, at_most=True).passed
    assert not Verdict("a", 5.1, 5.0, at_most=True).passed
    assert Verdict("a", np.float64(5.0), 5.0).passed is True  # JSON takes no bool of numpy's


def test_they_are_printed_and_plotted(tmp_path, capsys):
    show(verdicts(measured()))
    printed = capsys.readouterr().out
    assert printed.count("FAIL") == 4 and printed.count("pass") == 6
    plot(verdicts(measured()), tmp_path / "gates.png")
    assert (tmp_path / "gates.png").stat().st_size > 10_000


def test_the_training_script_knows_the_stage():
    assert list(STAGES)[-2:] == ["gates", "export"]


def test_the_shipped_world_is_the_one_that_the_docs_describe():
    text = (Path(__file__).parents[1] / "docs" / "clipart.md").read_text(encoding="utf-8")
    assert f"`clipart` {VERSION}, digest `{digest()}`" in text
