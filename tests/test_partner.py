"""ovseg.grounders.partner: a grounder folder's backbone, built or compared."""

from __future__ import annotations

import subprocess

import pytest
from acme.backbone import ToyBackbone

from ovseg.backbones.unet import UNetBackbone
from ovseg.grounders.partner import build_backbone, check_backbone, spec_differences
from ovseg.structures import FeatureSpec

SPEC = FeatureSpec({"a": (8, 4), "b": (16, 8)}, probes={"p": (2, 4, 24)})


def facts(class_path: str, init_args: dict, revision: str | None = None) -> dict:
    return {"backbone": {"class_path": class_path, "init_args": init_args, "revision": revision}}


def test_it_is_built_of_the_commit_that_was_trained_on(monkeypatch):
    path = "ovseg.backbones.unet.UNetBackbone"
    args = {"model": "owner/model", "taps": ["mid_block"], "local_files_only": False}
    args |= {"revision": "main"}
    backbone = build_backbone(facts(path, args, "abc"), "here", local_files_only=True)
    assert isinstance(backbone, UNetBackbone)
    assert (backbone.files.revision, backbone.files.local_files_only) == ("abc", True)
    args |= {"local_files_only": True}  # a choice of whoever trained it
    backbone = build_backbone(facts(path, args, "abc"), "here", local_files_only=False)
    assert backbone.files.local_files_only is False
    assert isinstance(build_backbone(facts("acme.backbone.ToyBackbone", {}), "", True), ToyBackbone)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "the grounder in here does not say how to build its backbone"),
        ({"backbone": {"model": "x"}}, "does not say how to build its backbone"),
        (facts("no.such.Backbone", {}), "no.such.Backbone of here cannot be imported"),
        (facts("acme.backbone.ToyBackbone", {"no": 1}), "of here; has its class changed"),
        (facts("torch.nn.Linear", {"in_features": 1}), "torch.nn.Linear, .* no DiffusionBackbone"),
    ],
)
def test_what_cannot_be_built(config, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(config, "here", False)


def test_a_config_cannot_call_what_it_likes(monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: started.append(args))
    for name in ("subprocess.run", "subprocess.Popen"):
        with pytest.raises(ValueError, match="is no DiffusionBackbone"):
            build_backbone(facts(name, {"args": "true"}), "here", False)
    assert not started


@pytest.mark.parametrize(
    ("here", "differences"),
    [
        (SPEC, []),
        (FeatureSpec({"b": (16, 8), "a": (8, 4)}, probes=SPEC.probes), []),
        (
            FeatureSpec({"a": (8, 2), "c": (16, 8)}, probes=SPEC.probes),
            ["taps only there: b", "taps only here: c", "taps differ: a (stride 4 there, 2 here)"],
        ),
        (FeatureSpec(SPEC.taps, 2, 2, {}), ["probes only there: p", "steps 1", "branches 1"]),
        (
            FeatureSpec(SPEC.taps, probes={"p": (3, 4, 16)}),
            ["probes differ: p (channels 2 there, 3 here), p (width 24 there, 16 here)"],
        ),
    ],
)
def test_differences(here, differences):
    found = spec_differences(SPEC, here)
    assert len(found) == len(differences)
    for text, start in zip(found, differences, strict=True):
        assert text.startswith(start)


def test_long_lists_are_cut():
    many = FeatureSpec({f"t{i}": (8, 4) for i in range(25)})
    found = spec_differences(many, FeatureSpec({}))
    assert found == ["taps only there: t0, t1, t2 and 22 more"]


def test_another_backbone():
    backbone = ToyBackbone()
    spec = backbone.feature_spec.to_dict()
    check_backbone({"backbone_digest": backbone.digest}, backbone, "here")
    config = {"backbone_digest": "old", "feature_spec": spec, "backbone": {"model": "acme/other"}}
    with pytest.raises(ValueError) as caught:
        check_backbone(config, backbone, "here")
    assert str(caught.value) == (
        "the grounder in here was trained on features of another backbone: model acme/other "
        f"there, acme/toy here; digest old there, {backbone.digest} here"
    )
