"""ovseg.grounders.card: what a grounder folder says of itself, and of nothing else."""

from __future__ import annotations

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from ovseg.grounders.card import make_card, own_results, read_results

CONFIG = {
    "class_path": "acme.grounder.Dot",
    "feature_spec": {"taps": {"mid": [8, 4], "up": [4, 2]}, "steps": 2, "branches": 2},
    "threshold": 0.35,
    "backbone_digest": "0123456789abcdef",
    "backbone": {
        "class_path": "ovseg.backbones.unet.UNetBackbone",
        "init_args": {},
        "model": "owner/model",
        "revision": "abc",
        "licence": "openrail",
        "steps": 50,
        "tap_steps": [1, 5],
        "timesteps": [1.0, 81.0],
    },
    "vocabulary": {
        "name": "farm",
        "split": "2",
        "seen": ["cow", "potted plant"],
        "unseen": ["hen"],
        "trained_on": ["cow", "hen"],
        "practices": ["pseudo-labels"],
    },
    "ovseg": "0.1.0",
}
RESULTS = {
    "one_seen": {
        "miou": 71.25,
        "images": 12,
        "foreground": {"miou": 100.0},
        "ceiling": {"miou": 93.96},
        "presence": 88.0,
    },
    "two_seen": {"miou": None, "images": 0, "foreground": {"miou": None}},
}


def rows(card: ModelCard) -> dict[str, list[str]]:
    """Return the cells of every line of a table by its first cell."""
    lines = [line[2:-2].split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in lines if rest}


def test_facts():
    card = make_card(CONFIG)
    facts = {key: cells[0] for key, cells in rows(card).items()}
    assert facts["grounder"] == "`acme.grounder.Dot`, threshold 0.35"
    assert facts["backbone"] == "`ovseg.backbones.unet.UNetBackbone`"
    assert facts["model of the backbone"] == "`owner/model`"
    assert facts["licence of the backbone"] == "openrail"
    assert facts["taps"] == "`mid`, `up`"
    assert facts["tapped steps"] == "1, 5 of 50, counted from the clean end; timesteps 1, 81"
    assert facts["guidance branches"] == "unconditional and conditional"
    assert (facts["vocabulary"], facts["split"]) == ("farm", "2")
    assert facts["seen classes"] == "cow, potted plant" and facts["unseen classes"] == "hen"
    assert facts["learnt from masks of"] == "cow, hen"
    assert facts["done in its training that a protocol may rule out"] == "pseudo-labels"
    assert 'model("a photo of the cow and the potted plant", names=["cow", "potted plant"])' in (
        card.text
    )
    assert card.text.startswith("\n# Dot on owner/model\n")


def test_it_is_a_card_of_the_hub(tmp_path):
    make_card(CONFIG, RESULTS).save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.content == (tmp_path / "README.md").read_text()
    header = yaml.safe_load(loaded.content.split("---\n")[1])
    assert header["library_name"] == "ovseg" and header["pipeline_tag"] == "image-segmentation"
    assert header["base_model"] == "owner/model" and header["metrics"] == ["mean_iou"]
    assert "license" not in header  # that of the backbone is not the grounder's
    (index,) = header["model-index"]
    (result,) = index["results"]  # a stream without a score has none here either
    assert result["dataset"]["split"] == "one_seen" and result["dataset"]["config"] == "split 2"
    assert result["metrics"] == [{"type": "mean_iou", "value": 71.25, "name": "mIoU"}]
    assert loaded.data.eval_results[0].metric_value == 71.25


def test_numbers_are_those_given_or_none():
    table = rows(make_card(CONFIG, RESULTS))
    assert table["one_seen"] == ["12", "71.2", "100.0", "94.0", "88.0"]
    assert table["two_seen"] == ["0", "–", "–", "–", "–"]
    card = make_card(CONFIG)
    assert card.text.endswith("## Numbers\nNot measured.\n")
    assert "model-index" not in card.content and "metrics" not in card.content


def test_what_is_not_known_is_said():
    bare = {**CONFIG, "backbone": {"model": "owner/folder"}, "vocabulary": {"seen": ["cow"]}}
    card = make_card(bare)
    facts = rows(card)
    for key in ("licence of the backbone", "tapped steps", "vocabulary", "unseen classes"):
        assert facts[key] == ["not recorded"]
    silent = {**CONFIG, "vocabulary": CONFIG["vocabulary"] | {"trained_on": ["cow", "*"]}}
    assert rows(make_card(silent))["learnt from masks of"] == ["not recorded"]
    loose = {**CONFIG, "backbone": {"timesteps": 500, "licence": None}}  # a third party's facts
    assert rows(make_card(loose))["tapped steps"] == ["not recorded; timesteps 500"]
    assert "base_model" not in card.content  # a folder with the look of a Hub id has no commit
    assert "not read from the Hub" in card.text
    assert "not read from the Hub" not in make_card(CONFIG).text
    embedded = {**CONFIG, "backbone": {"model": "clipart", "revision": None}}
    assert "not read from the Hub" not in make_card(embedded).text


def test_results_of_something_else_are_refused(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(FileNotFoundError, match="`ovseg test` of a grounding module writes"):
        read_results(path)
    path.write_text(json.dumps(RESULTS))
    assert read_results(path) == RESULTS
    for text in ("[]", "{}", '{"drawn": {"seen": 78.6, "unseen": 55.4}}', '{"miou": 1}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="holds no results of a grounding module"):
            read_results(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="results.json is no JSON"):
        read_results(path)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"images": "x"}, 'images must be a whole number, got "x"'),
        ({"miou": "x"}, 'miou must be a number or null, got "x"'),
        ({"presence": [1]}, r"presence must be a number or null, got \[1\]"),
        ({"foreground": None}, "foreground must be scores by name, miou .* got null"),
        ({"ceiling": {"miou": True}}, 'ceiling must be scores by name, .* got {"miou": true}'),
    ],
)
def test_scores_that_are_none_are_one_line(tmp_path, scores, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"drawn": {"miou": 1.5, "images": 3} | scores}))
    with pytest.raises(ValueError, match=f"results.json, drawn: {message}"):
        read_results(path)
    with pytest.warns(UserWarning, match="it is left out"):
        assert own_results(tmp_path, "abc") is None


def test_results_are_those_of_a_grounder(tmp_path):
    path, told = tmp_path / "results.json", {k: v | {"weights": "abc"} for k, v in RESULTS.items()}
    path.write_text(json.dumps(told))
    assert read_results(path, "abc") == read_results(path) == own_results(tmp_path, "abc") == told
    with pytest.raises(ValueError, match="results.json are of another grounder: give those of an"):
        read_results(path, "abd")
    with pytest.warns(UserWarning, match="are of another grounder: .* it is left out"):
        assert own_results(tmp_path, "abd") is None
    path.write_text(json.dumps(told | {"one_seen": RESULTS["one_seen"]}))
    with pytest.raises(ValueError, match="results.json do not say of which grounder: give those"):
        read_results(path, "abc")


def test_results_in_the_folder(tmp_path):
    assert own_results(tmp_path, "abc") is None
    (tmp_path / "results.json").write_text("{}")
    with pytest.warns(UserWarning, match="holds no results .* it is left out"):
        assert own_results(tmp_path, "abc") is None
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    assert own_results(tmp_path, "abc") == RESULTS  # of a folder older than that key
