"""tools/measure_grounder.py: pictures that no generator made."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ovseg import GroundedDiffusion
from ovseg.structures import Request
from ovseg.vocabulary import Vocabulary

TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "measure_grounder.py"))


def test_spans_of_the_prompt_are_the_names():
    words = Vocabulary.load("clipart")
    ids = [words.id_of("apple"), 1]
    request = Request(3, 9, *TOOL["fill"](TOOL["PROMPT"], ids, words))
    assert request.prompt == "a photo of an apple and a car"
    assert [request.prompt[slice(*e.span)] for e in request.entities] == ["apple", "car"]


def test_columns_hold_as_many_scenes_of_the_right_classes(tiny_grounder):
    words, model = Vocabulary.load("clipart"), GroundedDiffusion.from_pretrained(tiny_grounder)
    seen = []
    model.backbone.encode_image, encode = (
        lambda images, requests: seen.append(requests) or encode(images, requests),
        model.backbone.encode_image,
    )
    with torch.no_grad():
        result = TOOL["measure"](model, words, 3)
    assert {c: r["images"] for c, r in result.items()} == dict.fromkeys(
        ("one_seen", "one_unseen", "two_seen", "two_unseen"), 3
    )
    assert all(0 <= r["miou"] <= 100 for r in result.values())
    asked = [{e.class_id for request in batch for e in request.entities} for batch in seen]
    assert asked[0] <= {*words.seen} and asked[-1] <= {*words.unseen}
    assert pytest.approx(2) == sum(len(r.entities) for r in seen[-1]) / len(seen[-1])


def test_the_mean_over_draws_of_the_noise(tiny_grounder):
    words, model = Vocabulary.load("clipart"), GroundedDiffusion.from_pretrained(tiny_grounder)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    requests = [Request(i, 5 + i, *TOOL["fill"](TOOL["PROMPT"], [2 + i], words)) for i in (0, 1)]
    later = [request._replace(seed=request.seed + TOOL["NOISE"]) for request in requests]
    one, _ = TOOL["ground"](model, images, requests)
    other, _ = TOOL["ground"](model, images, later)
    mean, _ = TOOL["ground"](model, images, requests, samples=2)
    assert not torch.equal(one, other)
    torch.testing.assert_close(mean, (one + other) / 2)


def test_a_way_that_was_measured_is_not_measured_again(tiny_grounder, tmp_path, capsys):
    out, source = tmp_path / "ways.json", str(tiny_grounder)
    ways = [TOOL["Way"](source, 0, 1), TOOL["Way"](source, 3, 1)]
    rows = TOOL["compare"](ways, 1, out)
    assert [row["inversion_steps"] for row in rows] == [0, 3]
    assert rows == TOOL["compare"](ways, 1, out)  # the seconds too
    assert len(TOOL["compare"](ways, 2, out)) == 4
    TOOL["plot"](rows, tmp_path / "ways.png")
    TOOL["show"](rows, Console(width=140))
    assert "inversion, 3 steps" in capsys.readouterr().out and (tmp_path / "ways.png").is_file()


def test_masks_can_be_filtered_along_edges(tiny_grounder, tmp_path, capsys, monkeypatch):
    asked = []
    measure = TOOL["measure"].__globals__
    monkeypatch.setitem(measure, "follow_edges", lambda m, i, r: asked.append((i.shape, r)) or m)
    ways = [TOOL["Way"](str(tiny_grounder), 0, 1, radius) for radius in (0, 3)]
    plain, guided = TOOL["compare"](ways, 1, tmp_path / "ways.json")
    assert {(shape[-1], radius) for shape, radius in asked} == {(64, 3)} and len(asked) == 4
    assert plain["columns"] == guided["columns"]  # this filter does nothing
    TOOL["show"]([guided], Console(width=140))
    assert "guided 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--scenes", "0"], "--scenes must be >= 1, got 0"),
        (["--samples", "1", "0"], "--samples must be >= 1, got 1 0"),
        (["--inversion-steps", "-1"], "--inversion-steps must be >= 0, got -1"),
        (["--guided", "2", "-1"], "--guided must be >= 0, got 2 -1"),
        (["--grounder", "nowhere/at/all"], "no grounder in nowhere/at/all"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, line, tmp_path, capsys):
    out = tmp_path / "ways.json"
    assert TOOL["main"]([*arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1 and not out.exists()
