"""`ovseg prompts`: what a config would ask for, without any model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ovseg.__main__ import main
from ovseg.data.prompts import TemplatePrompts
from ovseg.data.prompts_rich import RichPrompts
from ovseg.prompts_preview import marked
from ovseg.vocabulary import Vocabulary

CONFIGS = Path(__file__).parents[1] / "configs"
RICH = {
    "objects": {1: 1, 2: 1},
    "classes": "all",
    "templates": ["a photo of {objects}, {place}"],
    "synonyms": 0.5,
    "adjectives": ["red"],
    "places": "english",
    "definitions": {"car": "with wheels"},
    "weights": {"bus": 3},
    "never_together": [["bus", "train"]],
}


PLAIN = {"class_path": "ovseg.data.prompts.TemplatePrompts"}


def config(prompts, seed=4, **changes) -> dict:
    """Return a stage whose backbone and annotator are not there."""
    stream = {"prompts": prompts, "annotator": {"class_path": "nowhere.Annotator"}, "seed": seed}
    streams = {"mine": {"class_path": "ovseg.data.live.LiveStream", "init_args": stream}}
    streams["other"] = {"class_path": "nowhere.Stream", "init_args": {}}
    arguments = {"vocabulary": "voc", "split": "zs3", "predict": streams} | changes
    return {"data": {"init_args": {**arguments, "backbone": {"class_path": "nowhere.Backbone"}}}}


def write(path, data) -> str:
    path.write_text(yaml.safe_dump(data))
    return str(path)


@pytest.fixture
def stage(tmp_path) -> str:
    prompts = {"class_path": "ovseg.data.prompts_rich.RichPrompts", "init_args": RICH}
    return write(tmp_path / "stage.yaml", config(prompts))


def rows(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_rows_are_the_requests(stage, capsys):
    vocabulary = Vocabulary.load("voc", "zs3")
    assert main(["prompts", "--config", stage, "--json", "-n", "7"]) == 0
    found = rows(capsys)
    assert len(found) == 7
    for index, row in enumerate(found):
        request = RichPrompts(**RICH).request(index, vocabulary, 4)
        assert (row["index"], row["seed"], row["prompt"]) == request[:3]
        assert row["negative_prompt"] == ""
        for said, entity in zip(row["entities"], request.entities, strict=True):
            assert said["class"] == vocabulary[entity.class_id].key
            assert (said["name"], said["span"]) == (entity.name, list(entity.span))
    assert main(["prompts", "--config", stage, "--json", "--seed", "5"]) == 0
    other = rows(capsys)
    assert len(other) == 20 and other[:7] != found


def test_the_table_marks_entities(stage, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["prompts", "--config", stage, "-n", "6"]) == 0
    printed = capsys.readouterr().out
    vocabulary = Vocabulary.load("voc", "zs3")
    requests = [RichPrompts(**RICH).request(i, vocabulary, 4) for i in range(6)]
    for request in requests:
        assert request.prompt in printed and str(request.seed) in printed
        spans = [(span.start, span.end) for span in marked(request).spans]
        assert spans == [entity.span for entity in request.entities]
        for entity in request.entities:
            name = vocabulary[entity.class_id].name
            assert name == entity.name or f"{name} ({entity.name})" in printed
    assert f"6 prompts, {sum(len(r.entities) for r in requests)} entities: " in printed


def test_a_long_word_of_the_table_is_folded(tmp_path, capsys, monkeypatch):
    word = "".join(f"<{number}>" for number in range(60))
    given = {"objects": {1: 1}, "classes": ["bus"], "templates": [f"{{objects}} {word}"]}
    prompts = {"class_path": "ovseg.data.prompts.TemplatePrompts", "init_args": given}
    path = write(tmp_path / "stage.yaml", config(prompts))
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["prompts", "--config", path, "-n", "1"]) == 0
    printed = capsys.readouterr().out
    cells = [line.split("│")[3].strip() for line in printed.splitlines() if line[:1] == "│"]
    assert word in "".join(cells) and "…" not in printed


def test_shipped_configs_and_their_streams(capsys):
    path = str(CONFIGS / "clipart" / "1_annotated.yaml")
    assert main(["prompts", "-c", path, "--stream", "two_mixed", "-n", "3", "--json"]) == 0
    prompts, vocabulary = TemplatePrompts({2: 1}, "mixed"), Vocabulary.load("clipart", "1")
    expected = [prompts.request(i, vocabulary, 15).prompt for i in range(3)]
    assert [row["prompt"] for row in rows(capsys)] == expected
    assert main(["prompts", "-c", path]) == 2
    assert "several streams: give --stream train or val_one_seen" in capsys.readouterr().err
    assert main(["prompts", "-c", path, "--stream", "none"]) == 2
    assert "no stream 'none' with prompts: train, " in capsys.readouterr().err


LAYERS = {
    "seed": {"init_args": {"seed": 9}},
    "lists": {"init_args": {"prompts": {"init_args": {"templates": ["{objects}"]}}}},
    "mapping": {"init_args": {"prompts": {"init_args": {"objects": {"3": 1}}}}},
    "class": {
        "init_args": {
            "prompts": {
                "class_path": "ovseg.data.prompts_rich.RichPrompts",
                "init_args": {"synonyms": 1.0},
            }
        }
    },
    "name": {"init_args": {"prompts": "ovseg.data.prompts_rich.RichPrompts"}},
}


def as_predict_sees_it(tmp_path, layers, capsys) -> str:
    """Write the one config that `predict` makes of several."""
    with pytest.raises(SystemExit) as left:
        main(["predict", *layers, "--print_config"])
    assert left.value.code == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    return str(path)


@pytest.mark.parametrize("names", [["seed"], ["lists"], ["mapping"], ["name"], [*LAYERS]])
def test_layers_are_those_of_predict(names, tmp_path, capsys):
    layers = ["-c", str(CONFIGS / "clipart" / "1_annotated.yaml")]
    for name in names:
        data = {"init_args": {"split": "2", "predict": {"one_unseen": LAYERS[name]}}}
        layers += ["-c", write(tmp_path / f"{name}.yaml", {"data": data})]
    whole = as_predict_sees_it(tmp_path, layers, capsys)
    for arguments in (layers, ["-c", whole]):  # the layers name one of seven streams: none is asked
        assert main(["prompts", *arguments, "--json"]) == 0
    found = rows(capsys)
    assert found[:20] == found[20:]
    assert main(["prompts", *layers[:2], "--stream", "one_unseen", "--json"]) == 0
    assert rows(capsys) != found[:20]


def test_a_layer_that_needs_no_prompts(stage, tmp_path, capsys):
    photographs = {"class_path": "ovseg.data.photographs.PhotographStream", "init_args": {}}
    data = {"init_args": {"predict": {"mine": photographs}}}
    layer = write(tmp_path / "layer.yaml", {"data": data})
    assert main(["prompts", "-c", stage, "-c", layer]) == 2
    assert f"{stage}, {layer} has no stream with prompts" in capsys.readouterr().err
    data["init_args"]["predict"]["mine"] = {"class_path": "nowhere.Stream", "init_args": {}}
    assert main(["prompts", "-c", stage, "-c", write(tmp_path / "b.yaml", {"data": data})]) == 2
    assert "no class 'nowhere.Stream' (No module named 'nowhere')" in capsys.readouterr().err


def test_captions(tmp_path, capsys):
    captions = tmp_path / "captions.txt"
    captions.write_text("a bus in a street\n")
    kind = "ovseg.data.prompts_captions.CaptionPrompts"
    path = write(
        tmp_path / "stage.yaml", config({"class_path": kind, "init_args": {"file": str(captions)}})
    )
    assert main(["prompts", "--config", path, "-n", "2", "--json"]) == 0
    assert [row["prompt"] for row in rows(capsys)] == ["a bus in a street"] * 2


def test_no_model_is_imported(stage):
    code = (
        "import sys; from ovseg.__main__ import main\n"
        f"assert main(['prompts', '--config', {stage!r}, '-n', '1']) == 0\n"
        "assert not {'lightning', 'diffusers', 'transformers', 'mmseg'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"trainer": {}}, "has no data.init_args.vocabulary and predict"),
        ([1], "has no data.init_args.vocabulary and predict"),
        (config({}, predict={"a": {"init_args": {}}}), "has no stream with prompts under"),
        (config({}, vocabulary="none"), "no vocabulary 'none'"),
        (config({}, vocabulary=[1]), "vocabulary: Expected a <class 'str'>. Got value: [1]"),
        (config({}, vocabulary=None), "vocabulary is null"),
        (config(PLAIN, seed="x"), "seed: Expected a <class 'int'>. Got value: x"),
        (config(PLAIN, seed=None), "seed is null"),
        (config({"class_path": "ovseg.data.prompts.NoPrompts"}), "NoPrompts"),
        (
            config(
                {"class_path": "ovseg.data.prompts.TemplatePrompts", "init_args": {"object": 3}}
            ),
            "'object' is not accepted",
        ),
        (
            config(
                {
                    "class_path": "ovseg.data.prompts.TemplatePrompts",
                    "init_args": {"weights": "none.json"},
                }
            ),
            "no results none.json",
        ),
        (
            config(
                {"class_path": "ovseg.data.prompts_rich.RichPrompts", "init_args": {"synonyms": 3}}
            ),
            "must be shares in [0, 1], got 3.0",
        ),
    ],
)
def test_bad_configs_are_one_line(data, words, tmp_path, capsys):
    assert main(["prompts", "--config", write(tmp_path / "stage.yaml", data)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_bad_arguments_are_one_line(stage, tmp_path, capsys):
    broken = tmp_path / "broken.yaml"
    broken.write_text("data: [")
    cases = {
        ("-c", "none.yaml"): "no file none.yaml",
        ("-c", str(broken)): "broken.yaml is no YAML",
        ("-c", stage, "-n", "0"): "-n must be >= 1, got 0",
        ("-c", stage, "--seed", "-1"): "index and seed must be >= 0, got 0 and -1",
    }
    for arguments, words in cases.items():
        assert main(["prompts", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
