"""ovseg.segmenters.loading: weights that a segmenter loads keep what their training was."""

import functools
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_cli import config
from test_segmenters_mmseg import model
from toy_data import quiet_trainer

from ovseg.__main__ import main
from ovseg.clipart.stream import DrawnScenes
from ovseg.data.base import PSEUDO_LABELS
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.modules.segmentation import SegmentationModule
from ovseg.segmenters.folder import save_segmenter
from ovseg.segmenters.mmseg import MMSegSegmenter
from ovseg.vocabulary import Vocabulary

SGD = functools.partial(torch.optim.SGD, lr=0.01)
CHECKPOINT, FOLDER = "model.ckpt", "segmenter/model.safetensors"
WORDS = Vocabulary.load("clipart", "1")
BOUND = "was trained with masks of boat, cat, flower, key, umbrella, which split 1 calls unseen"


@pytest.fixture(scope="module")
def supervised(tmp_path_factory) -> Path:
    """Return the folder of a training with masks of all classes: its checkpoint, its segmenter."""
    folder = tmp_path_factory.mktemp("supervised")
    data = SyntheticDataModule("clipart", "1", 4, train=DrawnScenes(4, seed=1, classes="all"))
    trained = module(unseen_masks=True, output=str(folder / "segmenter"))
    trainer = quiet_trainer(folder, max_steps=1)
    trainer.fit(trained, data)
    trainer.save_checkpoint(folder / CHECKPOINT)
    return folder


def module(vocabulary: Vocabulary = WORDS, weights: dict | None = None, **arguments):
    """Return a module whose segmenter loads these weights."""
    make = functools.partial(MMSegSegmenter, model=model(), **(weights or {}))
    return SegmentationModule(make, SGD, vocabulary=vocabulary, **arguments)


def kept(made: SegmentationModule) -> dict:
    """Return what a checkpoint of a module says."""
    checkpoint = {}
    made.on_save_checkpoint(checkpoint)
    return checkpoint


@pytest.mark.parametrize("argument", ["checkpoint", "pretrained"])
@pytest.mark.parametrize("file", [CHECKPOINT, FOLDER])
def test_masks_of_unseen_classes_are_remembered(file, argument, supervised):
    weights = {argument: str(supervised / file)}
    with pytest.raises(ValueError, match=f"the segmenter's checkpoint {BOUND}"):
        module(weights=weights)
    allowed = module(weights=weights, unseen_masks=True)
    with pytest.raises(ValueError, match=f"the checkpoint {BOUND}"):  # nor by its own checkpoint
        module().on_load_checkpoint(kept(allowed))
    assert kept(allowed)["trained_on"] == [c.key for c in WORDS.classes]


def test_an_older_folder_that_names_no_masks_stands_for_all(supervised, tmp_path):
    folder = tmp_path / "segmenter"
    folder.mkdir()
    (tmp_path / FOLDER).write_bytes((supervised / FOLDER).read_bytes())
    facts = json.loads((supervised / "segmenter" / "config.json").read_text())
    del facts["trained_on"], facts["practices"]
    (folder / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=BOUND):
        module(weights={"checkpoint": str(tmp_path / FOLDER)})


def plain(supervised: Path) -> dict:
    """Return the tensors of a trained network under mmseg's names."""
    state = torch.load(supervised / CHECKPOINT, weights_only=True)["state_dict"]
    prefix = "segmenter.model."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def test_public_backbones_say_nothing(supervised, tmp_path):
    state = {k: v for k, v in plain(supervised).items() if k.startswith("backbone.")}
    images = {"dataset_meta": {"classes": ["umbrella", "cat"]}}  # whole images had these labels
    torch.save({"state_dict": state, "meta": images}, tmp_path / "plain.pth")
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    for name in ("plain.pth", "model.safetensors"):
        made = module(weights={"pretrained": str(tmp_path / name)})
        assert made.segmenter.learnt_from == {} and kept(made)["trained_on"] == []


@pytest.mark.parametrize("argument", ["checkpoint", "pretrained"])
def test_networks_that_name_no_classes_stand_for_all(argument, supervised, tmp_path):
    torch.save({"state_dict": plain(supervised), "classes": ["wall"]}, tmp_path / "plain.pth")
    save_file(plain(supervised), tmp_path / "model.safetensors")
    for name in ("plain.pth", "model.safetensors"):
        weights = {argument: str(tmp_path / name)}
        with pytest.raises(ValueError, match=f"may have been{BOUND[3:]}"):
            module(weights=weights)
        allowed = kept(module(weights=weights, unseen_masks=True))
        assert allowed["trained_on"] == [c.key for c in WORDS.classes]


def named(supervised: Path, path: Path, names: list[str]) -> dict[str, str]:
    """Write a checkpoint of MMEngine's Runner that names its channels; return the argument."""
    meta = {"dataset_meta": {"classes": tuple(names)}}
    torch.save({"state_dict": plain(supervised), "meta": meta}, path)
    return {"checkpoint": str(path)}


def test_a_network_that_names_its_classes(supervised, tmp_path):
    """In the vocabulary's order, by any of its words, it has seen masks of all."""
    names = ["background", *(c.synonyms[0] if c.synonyms else c.name for c in WORDS.classes)]
    assert names[1:] != [c.key for c in WORDS.classes]
    weights = named(supervised, tmp_path / "named.pth", names)
    with pytest.raises(ValueError, match=f"the segmenter's checkpoint {BOUND}"):
        module(weights=weights, protocol="clipart_1")
    allowed = kept(module(weights=weights, unseen_masks=True))
    assert allowed["trained_on"] == [c.key for c in WORDS.classes]
    weights = named(supervised, tmp_path / "moved.pth", [*names[:1], *names[:0:-1]])
    with pytest.raises(ValueError, match="number 1, drum there and car here: .* in another"):
        module(weights=weights, unseen_masks=True)


def test_only_the_named_classes_were_taught(supervised, tmp_path):
    weights = named(supervised, tmp_path / "few.pth", ["wall", "cat, kitten", "Automobile"])
    made = module(weights={"pretrained": weights["checkpoint"]}, unseen_masks=True)
    assert kept(made)["trained_on"] == ["car", "cat"]


@pytest.mark.parametrize("file", [CHECKPOINT, FOLDER])
def test_weights_of_other_classes(file, supervised):
    """Both vocabularies have 20; a backbone may change them, and knows those that they share."""
    voc = Vocabulary.load("voc", "1")
    with pytest.raises(ValueError, match="number 1, car there and aeroplane here: set data.vocab"):
        module(voc, {"checkpoint": str(supervised / file)}, unseen_masks=True)
    made = module(voc, {"pretrained": str(supervised / file)}, unseen_masks=True)
    shared = [c.key for c in voc.classes if c.key in {c.key for c in WORDS.classes}]
    assert kept(made)["trained_on"] == shared and "cat" in shared


def test_practices_are_remembered(supervised, tmp_path):
    content = torch.load(supervised / CHECKPOINT, weights_only=True)
    content |= {"trained_on": [], "practices": [PSEUDO_LABELS]}
    torch.save(content, tmp_path / CHECKPOINT)
    segmenter = MMSegSegmenter(WORDS.num_classes, model=model())
    save_segmenter(segmenter, tmp_path / "segmenter", WORDS, [], [PSEUDO_LABELS])
    for file in (CHECKPOINT, FOLDER):
        weights = {"checkpoint": str(tmp_path / file)}
        with pytest.raises(ValueError, match="segmenter's checkpoint's training has pseudo-labels"):
            module(weights=weights, protocol="clipart_1")
        assert kept(module(weights=weights))["practices"] == [PSEUDO_LABELS]


def test_the_command_line_refuses_it_as_it_refuses_ckpt_path(
    supervised, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    stage = config()
    net = {"class_path": "ovseg.segmenters.mmseg.MMSegSegmenter", "init_args": {"model": model()}}
    stage["model"]["init_args"]["segmenter"] = net
    stage["data"]["init_args"]["test"] = {"drawn": stage["data"]["init_args"].pop("train")}
    Path("stage.yaml").write_text(yaml.safe_dump(stage))
    argument = "--model.init_args.segmenter.init_args.checkpoint"
    for by, what in ((argument, "the segmenter's checkpoint"), ("--ckpt_path", "the checkpoint")):
        assert main(["test", "-c", "stage.yaml", f"{by}={supervised / CHECKPOINT}"]) == 2
        error = capfd.readouterr().err.strip()
        assert error.startswith(f"ovseg test: {what} {BOUND}") and error.count("\n") == 0, error
    assert not Path("results.json").exists()
