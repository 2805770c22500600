"""`ovseg names`: tokens without weights, what they share, and what the images say."""

from __future__ import annotations

import json
import shutil

import families
import pytest
import yaml

from ovseg.__main__ import main
from ovseg.backbones.mmdit import MMDiTBackbone
from ovseg.backbones.unet import UNetBackbone
from ovseg.names import Name, read_names, shared
from ovseg.vocabulary import Vocabulary

TAPS = ["down_blocks.0.attentions.0", "down_blocks.1.attentions.0"]
WORDS = {"bus": ["school bus"], "potted plant": [], "<|endoftext|>": [], "cat " * 30 + "cat": []}
CLASSES = [
    {"key": key, "synonyms": more, "color": [place, 0, 0]}
    for place, (key, more) in enumerate(WORDS.items())
]


def write(path, data) -> str:
    path.write_text(yaml.safe_dump(data))
    return str(path)


@pytest.fixture
def vocabulary(tmp_path) -> str:
    data = {"name": "mine", "classes": CLASSES, "splits": {"1": ["potted plant"]}}
    return write(tmp_path / "vocabulary.yaml", data)


def backbone_yaml(tmp_path, folder: str) -> str:
    facts = {"model": folder, "taps": TAPS, "steps": 2}
    kind = "ovseg.backbones.unet.UNetBackbone"
    return write(tmp_path / "backbone.yaml", {"class_path": kind, "init_args": facts})


@pytest.fixture
def weightless(tiny_pipeline, tmp_path) -> str:
    """Return the tiny model without any weights."""
    folder = tmp_path / "weightless"
    shutil.copytree(tiny_pipeline, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return str(folder)


def test_tokens_are_the_tokenizers_own_and_need_no_weights(weightless, vocabulary):
    backbone = UNetBackbone(weightless, TAPS, steps=2)
    names = read_names(Vocabulary.load(vocabulary), backbone)
    assert [n.name for n in names] == ["bus", "school bus", *list(WORDS)[1:]]
    tokenizer = backbone.TEXT(backbone.files).tokenizer
    for name in names[:3]:
        assert name.pieces == tokenizer.tokenize(name.name) and name.problem is None
        assert name.ids == tokenizer(name.name)["input_ids"][1:-1]
    assert "no tokens for the name '<|endoftext|>'" in names[3].problem
    assert "is cut off" in names[4].problem and len(names[4].ids) == 31
    assert shared(names[0], names) == {"school bus": ["bus</w>"]}
    assert shared(names[1], names)["bus"] == ["bus</w>"]
    assert "bus" not in shared(names[2], names)
    spelt = [Name(1, "ab", ["a", "b</w>"], [1, 2], None), Name(2, "a", ["a"], [1], None)]
    assert not shared(spelt[0], spelt)  # a letter alone is no word


@pytest.mark.parametrize("names_in", ["sentence", "pooled"])
def test_names_are_judged_by_the_tokenizer_that_embeds_them(names_in, tmp_path):
    """FLUX embeds names by T5, whose tiny tokenizer knows no capitals, and pooled ones by CLIP."""
    folder = families.save(families.flux, tmp_path / "flux")
    data = {"name": "mine", "classes": [{"key": "House", "color": [0, 0, 0]}], "splits": {"1": []}}
    vocabulary = Vocabulary.load(write(tmp_path / "vocabulary.yaml", data))
    taps = ["transformer_blocks.0"]
    (name,) = read_names(vocabulary, MMDiTBackbone(folder, taps, names_in=names_in))
    if names_in == "pooled":
        assert name.pieces == ["house</w>"] and name.problem is None
    else:
        assert "<unk>" in name.pieces and "no tokens for the name 'House'" in name.problem


def test_the_verb_writes_what_it_prints(weightless, vocabulary, tmp_path, capsys):
    backbone, out = backbone_yaml(tmp_path, weightless), tmp_path / "rows.json"
    arguments = ["--vocabulary", vocabulary, "--backbone", backbone, "--json", str(out)]
    assert main(["names", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "potted" in printed and "cannot be embedded: <|endoftext|>, cat cat" in printed
    assert "3 of 5 names are fine" in printed
    rows = json.loads(out.read_text())
    assert rows[0]["class"] == rows[1]["class"] == "bus"
    assert rows[0]["shares"] == {"school bus": ["bus</w>"]} and rows[0]["verdict"] == ""
    assert [row["verdict"] for row in rows[3:]] == ["cannot be embedded"] * 2


def test_the_embedded_world(capsys):
    assert main(["names", "--vocabulary", "clipart", "--backbone", "clipart"]) == 0
    assert "40 of 40 names are fine\n" in capsys.readouterr().out


def test_images_are_judged(tiny_pipeline, tiny_grounder, vocabulary, tmp_path, capsys):
    """A grounder that is judged by its own masks finds all that it draws."""
    kind = "ovseg.annotators.grounder.GrounderAnnotator"
    truth = {"class_path": kind, "init_args": {"folder": str(tiny_grounder)}}
    parts = {
        "--vocabulary": write(
            tmp_path / "two.yaml",
            {"name": "two", "classes": CLASSES[:3], "splits": {"1": []}},
        ),
        "--backbone": backbone_yaml(tmp_path, tiny_pipeline),
        "--grounder": str(tiny_grounder),
        "--annotator": write(tmp_path / "annotator.yaml", truth),
        "--images": "2",
        "--json": str(tmp_path / "rows.json"),
    }
    given = [word for pair in parts.items() for word in pair]
    assert main(["names", *given]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["name"] for row in rows] == ["bus", "school bus", "potted plant", "<|endoftext|>"]
    for row in rows[:3]:
        assert row["drawn"] in (0, 50, 100)
        assert row["miou"] == (pytest.approx(100) if row["drawn"] else None)
    assert "drawn" not in rows[3] and rows[3]["verdict"] == "cannot be embedded"
    assert main(["names", *given, "--min-drawn", "0", "--min-iou", "101"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    found = ["cannot ground" if row["drawn"] else "" for row in rows[:3]]
    assert [row["verdict"] for row in rows[:3]] == found
    assert main(["names", *given, "--min-drawn", "101"]) == 0
    assert "0 of 4 names are fine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--vocabulary": "none"}, "no vocabulary 'none'"),
        ({"--split": "9"}, "has no split '9'"),
        ({"--backbone": "none.yaml"}, "no file none.yaml"),
        ({"--backbone": "toy"}, "is a ToyBackbone; names are read by the tokenizers of"),
        ({"--backbone": "wrong"}, "steps must be at least 1"),
        ({"--grounder": "somewhere"}, "give --grounder and --annotator together"),
        ({"--grounder": "somewhere", "--annotator": "clipart"}, "no grounder in somewhere"),
        ({"--images": "0"}, "--images must be >= 1 and --seed >= 0, got 0 and 0"),
    ],
)
def test_bad_arguments_are_one_line(changes, words, tmp_path, capsys):
    facts = {"model": "clipart", "taps": TAPS, "steps": 0}
    parts = {
        "toy": {"class_path": "acme.backbone.ToyBackbone"},
        "wrong": {"class_path": "ovseg.backbones.unet.UNetBackbone", "init_args": facts},
    }
    for name, part in parts.items():
        write(tmp_path / name, part)
    given = {"--vocabulary": "clipart", "--backbone": "clipart"} | changes
    if given["--backbone"] in parts:
        given["--backbone"] = str(tmp_path / given["--backbone"])
    assert main(["names", *[word for pair in given.items() for word in pair]]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("ovseg names: ") and error.count("\n") == 1, error
