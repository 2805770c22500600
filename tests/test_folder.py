"""ovseg.grounders.folder: written as a whole, loaded or refused with a reason."""

from __future__ import annotations

import json

import pytest
import torch

from ovseg.backbones.unet import UNetBackbone
from ovseg.grounders.attention import AttentionGrounder
from ovseg.grounders.base import Grounder
from ovseg.grounders.folder import (
    find_grounder,
    folder_digest,
    known_facts,
    load_grounder,
    read_config,
    save_grounder,
    split_facts,
    weights_digest,
    write_folder,
)
from ovseg.grounders.fusion import FusionGrounder
from ovseg.structures import Entities, Features
from ovseg.vocabulary import Vocabulary

TAPS = ["down_blocks.0.attentions.0", "down_blocks.1.attentions.0"]
SIZES = {"widths": (2, 3), "patch": 2, "layers": 1, "hidden": 16, "heads": 2, "ffn": 16}
VOCABULARY = Vocabulary.load("clipart", "2")


class Plugin(Grounder):
    """A third party's grounder, found by the path of its class."""

    def __init__(self, feature_spec, text_width, note: str = "none") -> None:
        super().__init__(feature_spec, text_width)
        self.weight = torch.nn.Parameter(torch.zeros(text_width))

    def forward(self, features: Features, entities: Entities) -> torch.Tensor:
        return (entities.text @ self.weight)[..., None, None]


class Picky(Plugin):
    """One whose constructor fails in its own ways."""

    def __init__(self, feature_spec, text_width, sizes) -> None:
        super().__init__(feature_spec, text_width)
        self.size = torch.nn.Parameter(torch.zeros(sizes[0]))


@pytest.fixture(scope="module")
def backbone(tiny_pipeline):
    return UNetBackbone(tiny_pipeline, TAPS, steps=2)


@pytest.fixture
def grounder(backbone):
    torch.manual_seed(0)
    return FusionGrounder(backbone.feature_spec, backbone.text_width, **SIZES)


def edit(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip(backbone, grounder, tmp_path):
    grounder.train()
    features = Features(
        {"down_blocks.0.attentions.0": torch.randn(2, 1, 1, 16, 16, 16)}
        | {"down_blocks.1.attentions.0": torch.randn(2, 1, 1, 24, 8, 8)}
    )
    valid = torch.ones(2, 1, dtype=torch.bool)
    entities = Entities(torch.randn(2, 1, 32), valid.long(), valid)
    grounder(features, entities)
    grounder.threshold = 0.35
    save_grounder(grounder, tmp_path / "out", backbone, VOCABULARY)
    loaded = load_grounder(tmp_path / "out", backbone)
    assert torch.equal(loaded(features, entities), grounder.eval()(features, entities))
    assert loaded.threshold == 0.35 and not loaded.training
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["class_path"] == "ovseg.grounders.fusion.FusionGrounder"
    facts = config["vocabulary"]
    assert facts["split"] == "2" and "car" in facts["seen"] and "chair" not in facts["seen"]
    assert sorted(facts["seen"] + facts["unseen"]) == sorted(VOCABULARY.names[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing partial is left


def test_a_plugin_and_a_grounder_without_parameters(backbone, tmp_path):
    for grounder in (
        Plugin(backbone.feature_spec, 32, note="mine"),
        AttentionGrounder(backbone.feature_spec, 32, threshold=0.3),
    ):
        save_grounder(grounder, tmp_path / "out", backbone, VOCABULARY)  # replaces the first
        loaded = load_grounder(tmp_path / "out", backbone)
        assert type(loaded) is type(grounder) and loaded.init_args == grounder.init_args
        assert loaded.threshold == grounder.threshold


def test_half_precision_weights_are_loaded_into_full(backbone, grounder, tmp_path):
    save_grounder(grounder.half(), tmp_path / "out", backbone, VOCABULARY)
    assert {p.dtype for p in load_grounder(tmp_path / "out").parameters()} == {torch.float32}


def test_a_failed_write_leaves_the_older_grounder(backbone, grounder, tmp_path, monkeypatch):
    save_grounder(grounder, tmp_path / "out", backbone, VOCABULARY)
    before = folder_digest(tmp_path / "out")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("ovseg.grounders.folder.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_grounder(Plugin(backbone.feature_spec, 32), tmp_path / "out", backbone, VOCABULARY)
    assert folder_digest(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_digest_follows_weights_and_threshold(backbone, grounder, tmp_path):
    digests = set()
    for change in (lambda: None, lambda: grounder.to_query.weight.data.add_(1)):
        change()
        save_grounder(grounder, tmp_path / "out", backbone, VOCABULARY)
        digests.add(folder_digest(tmp_path / "out"))
    edit(tmp_path / "out", threshold=0.1)
    assert len(digests | {folder_digest(tmp_path / "out")}) == 3


def test_another_backbone_is_refused_with_the_difference(backbone, grounder, tmp_path):
    save_grounder(grounder, tmp_path / "out", backbone, VOCABULARY)
    model = backbone.files.model
    load_grounder(tmp_path / "out", UNetBackbone(model, TAPS, steps=2, guidance_scale=3.0))
    with pytest.raises(ValueError, match=r"timesteps \[1.0\] there, \[501.0\] here"):
        load_grounder(tmp_path / "out", UNetBackbone(model, TAPS, steps=2, tap_steps=(2,)))
    with pytest.raises(ValueError, match="another backbone: branches 1 there, 2 here; digest"):
        load_grounder(tmp_path / "out", UNetBackbone(model, TAPS, steps=2, both_branches=True))
    with pytest.raises(ValueError, match=f"backbone: taps only there: {TAPS[1]}; digest"):
        load_grounder(tmp_path / "out", UNetBackbone(model, TAPS[:1], steps=2))


def test_only_who_reads_attention_is_bound_to_its_layers(backbone, grounder, tmp_path):
    def collecting(*layers):
        return UNetBackbone(**backbone.init_args | {"attention": layers})

    save_grounder(grounder, tmp_path / "fusion", backbone, Vocabulary.load("clipart"))
    load_grounder(tmp_path / "fusion", collecting("mid_block"))
    there = collecting("down_blocks.0", "mid_block")
    reader = AttentionGrounder(there.feature_spec, there.text_width)
    save_grounder(reader, tmp_path / "attention", there, Vocabulary.load("clipart"))
    load_grounder(tmp_path / "attention", collecting("mid_block", "down_blocks.0"))
    for other in (backbone, collecting("mid_block")):
        with pytest.raises(
            ValueError, match=r"attention \['down_blocks.0', 'mid_block'\] there, \["
        ):
            load_grounder(tmp_path / "attention", other)
    edit(tmp_path / "attention", attention=None)  # older folders do not say
    load_grounder(tmp_path / "attention", backbone)


def test_what_cannot_be_loaded(backbone, grounder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="no grounder in .*out: it has no config.json"):
        load_grounder(out)
    save_grounder(grounder, out, backbone, VOCABULARY)
    arguments = json.loads((out / "config.json").read_text())["init_args"]
    edit(out, init_args=arguments | {"widths": [2, 4]})
    with pytest.raises(
        ValueError, match=r"projections.1.weight is \(4, 16, 1, 1\) in ovseg.*\(3, "
    ):
        load_grounder(out)
    edit(out, init_args=arguments | {"colour": 1})
    with pytest.raises(ValueError, match="has its class changed"):
        load_grounder(out)
    edit(out, init_args=arguments, class_path="no.such.Grounder")
    with pytest.raises(ValueError, match="no.such.Grounder, which cannot be imported"):
        load_grounder(out)
    edit(out, class_path="torch.nn.Linear")
    with pytest.raises(ValueError, match="torch.nn.Linear, named by .* is no Grounder"):
        load_grounder(out)
    edit(out, class_path="ovseg.grounders.fusion.FusionGrounder")
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot read .*model.safetensors"):
        load_grounder(out)
    (out / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="is no grounder's: it lacks backbone_digest, class_path"):
        load_grounder(out)
    (out / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        load_grounder(out)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"class_path": 5}, "class_path must be text, got 5"),
        ({"init_args": [1]}, r"init_args must be arguments by name, got \[1\]"),
        ({"feature_spec": {"taps": 5}}, 'feature_spec must be taps .*, got {"taps": 5}'),
        ({"feature_spec": {"taps": {"mid": [8, 0]}}}, "feature_spec must be taps"),
        ({"feature_spec": {"taps": {"mid": ["8", 4]}}}, "feature_spec must be taps"),
        ({"feature_spec": {"taps": {}, "branches": 3}}, "feature_spec must be taps"),
        ({"feature_spec": {"taps": {}, "probes": []}}, "feature_spec must be taps"),
        ({"text_width": -1}, "text_width must be a whole number >= 1, got -1"),
        ({"threshold": None}, r"threshold must be a number inside \(0, 1\), got null"),
        ({"threshold": "0.5"}, 'threshold must be .*, got "0.5"'),
        ({"threshold": 1.5}, "threshold must be .*, got 1.5"),
        ({"threshold": 0}, "threshold must be .*, got 0"),
        ({"threshold": float("nan")}, "threshold must be .*, got NaN"),
        ({"backbone_digest": None}, "backbone_digest must be text, got null"),
        ({"backbone": "voc"}, "backbone must be null, or facts by name, .* got"),
        ({"backbone": {"class_path": "a.B", "init_args": None}}, "backbone must be null, or facts"),
        ({"vocabulary": "voc"}, 'vocabulary must be null, or facts by name, .* got "voc"'),
        ({"attention": [1, "a"]}, r'attention must be null, or a list of texts, got \[1, "a"\]'),
        ({"vocabulary": {"seen": None}}, 'vocabulary must be .*, got {"seen": null}'),
        ({"vocabulary": {"seen": ["x" * 99]} | {"practices": 1}}, r"got {\"seen\": .*xxx\.\.\.$"),
    ],
)
def test_values_that_cannot_be_are_one_line(backbone, grounder, tmp_path, value, wanted):
    save_grounder(grounder, tmp_path / "out", backbone, VOCABULARY)
    edit(tmp_path / "out", **value)
    for read in (read_config, load_grounder, folder_digest):
        with pytest.raises(ValueError, match=f"out/config.json: .*{wanted}"):
            read(tmp_path / "out")


def test_facts_that_may_be_absent(backbone, grounder, tmp_path):
    save_grounder(grounder, tmp_path / "out", backbone, VOCABULARY)
    edit(tmp_path / "out", backbone=None, vocabulary=None)
    assert load_grounder(tmp_path / "out").learnt_from == {"trained_on": ["*"], "practices": []}


def test_what_fails_in_a_constructor_is_one_line(backbone, tmp_path):
    save_grounder(Picky(backbone.feature_spec, 32, sizes=(1,)), tmp_path, backbone, VOCABULARY)
    for sizes, why in (([-1], "non-negative"), ([], "index out of range"), ({}, "0")):
        edit(tmp_path, init_args={"sizes": sizes})
        with pytest.raises(ValueError, match=f"has its class changed. .*{why}"):
            load_grounder(tmp_path)


def test_a_folder_of_something_else_is_not_overwritten(backbone, grounder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and holds no grounder"):
        save_grounder(grounder, tmp_path, backbone, VOCABULARY)
    save_grounder(grounder, tmp_path / "out", backbone, VOCABULARY)
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds more than a grounder, thesis.tex for one"):
        save_grounder(grounder, tmp_path / "out", backbone, VOCABULARY)


def test_a_digest_of_weights_knows_values_not_precision(backbone, grounder, tmp_path):
    grounder.half()
    digest = weights_digest(grounder)
    save_grounder(grounder, tmp_path / "out", backbone, VOCABULARY)
    loaded = load_grounder(tmp_path / "out")
    assert weights_digest(loaded) == digest
    loaded.threshold = 0.3
    assert weights_digest(loaded) != digest


def test_what_a_loaded_grounder_has_learnt_is_known(backbone, grounder, tmp_path):
    taught = VOCABULARY.unseen[:1]
    save_grounder(grounder, tmp_path / "out", backbone, VOCABULARY, taught, {"self_training"})
    facts = read_config(tmp_path / "out")["vocabulary"]
    known = known_facts(load_grounder(tmp_path / "out"), VOCABULARY)
    assert {*known["trained_on"]} == {*facts["trained_on"]} > {*facts["seen"]}
    assert known["practices"] == ["self_training"]
    fresh = known_facts(grounder, VOCABULARY)
    assert fresh == split_facts(VOCABULARY)


def test_arguments_that_are_no_json(backbone, tmp_path):
    grounder = Plugin(backbone.feature_spec, 32, note={1, 2})
    with pytest.raises(ValueError, match="must be JSON values to be saved"):
        save_grounder(grounder, tmp_path / "out", backbone, VOCABULARY)


def test_the_card_and_the_numbers_are_part_of_the_folder(backbone, grounder, tmp_path):
    out, facts = tmp_path / "out", split_facts(VOCABULARY)
    results = {"one_seen": {"miou": 71.5, "images": 3}}
    write_folder(out, grounder, backbone, facts, results)
    names = ["README.md", "config.json", "model.safetensors", "results.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert "| one_seen | 3 | 71.5 | – | – | – |" in (out / "README.md").read_text()
    assert json.loads((out / "results.json").read_text()) == results
    save_grounder(grounder, out, backbone, VOCABULARY)  # a new training: the numbers are gone
    assert sorted(path.name for path in out.iterdir()) == names[:3]
    assert "Not measured." in (out / "README.md").read_text()


def test_a_source_is_a_folder_or_on_the_hub(backbone, grounder, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_grounder(grounder, "owner/name", backbone, VOCABULARY)
    assert find_grounder("owner/name") == tmp_path.joinpath("owner/name").relative_to(tmp_path)
    assert not hub.asked  # a folder is a folder
    save_grounder(grounder, hub.remote / "else" / "where", backbone, VOCABULARY)
    digest = folder_digest("owner/name")
    assert folder_digest("else/where") == digest
    found = find_grounder("else/where", revision="v1")
    assert found == hub.cache / "else" / "where" and hub.asked[-1]["revision"] == "v1"
    assert sorted(p.name for p in found.iterdir()) == ["config.json", "model.safetensors"]
    asked = len(hub.asked)
    for source in ("clipart", "nowhere", "a/b/c", tmp_path / "none", str(tmp_path / "none")):
        find_grounder(source)
    assert len(hub.asked) == asked
    with pytest.raises(FileNotFoundError, match="config.json and model.safetensors of 'no/name'"):
        load_grounder("no/name")


def test_pickled_weights_are_never_read(backbone, grounder, tmp_path):
    save_grounder(grounder, tmp_path / "out", backbone, VOCABULARY)
    weights = tmp_path / "out" / "model.safetensors"
    for name in ("pytorch_model.bin", "model.safetensors"):
        torch.save(grounder.state_dict(), weights.with_name(name))
    with pytest.raises(ValueError, match="cannot read .*model.safetensors"):
        load_grounder(tmp_path / "out")
    weights.unlink()
    with pytest.raises(ValueError, match="cannot read .*model.safetensors"):
        load_grounder(tmp_path / "out")
