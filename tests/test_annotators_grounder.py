"""ovseg.annotators.grounder: a grounder folder as an annotator."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from ovseg.annotators.grounder import GrounderAnnotator
from ovseg.backbones.unet import UNetBackbone
from ovseg.grounders.attention import AttentionGrounder
from ovseg.grounders.folder import save_grounder
from ovseg.structures import Entity, Request
from ovseg.vocabulary import Vocabulary

VOCABULARY = Vocabulary.load("clipart", "1")
PROMPT = "a photo of a house and a fish"
HOUSE, FISH = Entity(10, "house", (13, 18)), Entity(4, "fish", (25, 29))
REQUESTS = [
    Request(0, 1, PROMPT, (HOUSE, FISH)),
    Request(1, 2, PROMPT, (HOUSE, Entity(8, "flower", (-1, -1)))),
    Request(2, 3, "a photo of a fish", (Entity(4, "fish", (13, 17)),)),
]


@pytest.fixture(scope="module")
def backbone(tiny_pipeline):
    return UNetBackbone(tiny_pipeline, ["mid_block"], steps=2, attention=("mid_block",))


@pytest.fixture(scope="module")
def annotator(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grounder") / "out"
    grounder = AttentionGrounder(backbone.feature_spec, backbone.text_width, threshold=0.3)
    save_grounder(grounder, folder, backbone, VOCABULARY)
    annotator = GrounderAnnotator(str(folder))
    annotator.bind(VOCABULARY)
    return annotator


@pytest.fixture(scope="module")
def sample(backbone):
    return backbone.sample(REQUESTS)


def test_masks_at_image_size_with_the_threshold_at_a_half(annotator, sample):
    annotation = annotator.annotate(sample)
    assert annotation.masks.shape == (3, 2, 64, 64)
    assert annotation.masks.min() >= 0 and annotation.masks.max() <= 1
    raw = annotator.grounder(sample.features, sample.entities)
    large = torch.nn.functional.interpolate(raw, size=(64, 64), mode="bilinear").sigmoid()
    names = sample.entities.valid
    assert torch.equal(annotation.masks[names] >= 0.5, large[names] >= 0.3)
    assert annotation.found.tolist() == [[True, True], [True, False], [True, False]]
    assert (annotation.scores > 0.5).tolist() == annotation.found.tolist()
    assert (annotation.masks[2, 1] == 0).all()  # padding
    inside = annotation.masks[0, 0][annotation.masks[0, 0] >= 0.5]
    assert annotation.scores[0, 0].item() == pytest.approx(inside.mean().item(), abs=1e-5)


def test_it_knows_every_name_and_says_what_it_was_trained_on(annotator):
    facts = annotator.describe()
    assert facts["requested_classes"] == list(range(1, 21))
    assert facts["trained_on"] == list(VOCABULARY.seen) and facts["split"] == "1"
    assert facts["source"].endswith("AttentionGrounder") and len(facts["digest"]) == 16


def test_another_vocabulary_keeps_the_names_it_was_trained_on(annotator):
    annotator.bind(Vocabulary.load("voc", "zs3"))
    voc = annotator.vocabulary
    assert [voc[i].name for i in annotator.describe()["trained_on"]] == [
        "bird",
        "bus",
        "car",
        "chair",
    ]
    annotator.bind(VOCABULARY)


def test_refusals(annotator, backbone, sample, tiny_pipeline):
    annotator.check(backbone)
    with pytest.raises(ValueError, match=r"timesteps \[1.0\] there, \[501.0\] here"):
        annotator.check(UNetBackbone(tiny_pipeline, ["mid_block"], steps=2, tap_steps=(2,)))
    other = UNetBackbone(tiny_pipeline, ["conv_in"], steps=2).sample(REQUESTS[:1])
    with pytest.raises(ValueError, match="needs the tap 'mid_block'; the backbone has conv_in"):
        annotator.annotate(other)
    with pytest.raises(ValueError, match="the backbone's sample has none"):
        annotator.annotate(replace(sample, features=None))
    with pytest.raises(FileNotFoundError, match="no grounder in nowhere"):
        GrounderAnnotator("nowhere")


def test_always_in_eval_mode_and_frozen(annotator):
    annotator.train()
    assert not annotator.grounder.training


def test_a_split_whose_unseen_classes_it_was_trained_on_is_refused(annotator):
    other = Vocabulary.load("clipart", "2")
    known = {VOCABULARY[i].name for i in VOCABULARY.seen} & {other[i].name for i in other.unseen}
    with pytest.raises(ValueError, match="which split 2 of clipart calls unseen") as caught:
        annotator.bind(other)
    assert known and all(name in str(caught.value) for name in known)
    annotator.bind(VOCABULARY)


def test_a_grounder_on_the_hub(annotator, backbone, hub):
    save_grounder(annotator.grounder, hub.remote / "owner" / "name", backbone, VOCABULARY)
    loaded = GrounderAnnotator("owner/name")
    loaded.bind(VOCABULARY)
    loaded.check(backbone)
    assert loaded.describe() == annotator.describe()
    assert len(hub.asked) == 1  # found once, then a folder


@pytest.mark.parametrize(
    "facts, learnt",
    [
        ({"vocabulary": {"trained_on": ["couch", "motorcycle", "dog"]}}, "dog, sofa"),
        ({"vocabulary": None}, "every"),
    ],
)
def test_what_another_vocabulary_calls_it_was_learnt_too(annotator, tmp_path, facts, learnt):
    """Split 1 of VOC, where dog and sofa are unseen; COCO says couch."""
    voc = Vocabulary.load("voc", "1")
    shutil.copytree(annotator.folder, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    of_coco = GrounderAnnotator(str(tmp_path / "out"))
    unseen = [voc[i].name for i in voc.unseen]
    names = ", ".join(unseen) if learnt == "every" else learnt
    how = "may have been" if learnt == "every" else "was"
    message = f"{how} trained with masks of {names}, which split 1 of voc"
    with pytest.raises(ValueError, match=message):
        of_coco.bind(voc)
