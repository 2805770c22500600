"""ovseg.pipeline: prompts and names to images and masks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ovseg import GroundedDiffusion
from ovseg.backbones.unet import UNetBackbone


@pytest.fixture(scope="module")
def pipe(tiny_grounder):
    return GroundedDiffusion.from_pretrained(tiny_grounder)


def test_one_prompt(pipe):
    result = pipe("a photo of a house and a fish", names=["house", "fish"], seed=7)
    assert [image.size for image in result.images] == [(64, 64)]
    assert result.masks["fish"].shape == (64, 64) and result.masks["fish"].dtype == bool
    assert result.labels.shape == (64, 64) and result.labels.dtype == np.int64
    assert result.names == ["house", "fish"]
    house, fish = result.probabilities["house"], result.probabilities["fish"]
    expected = np.where(np.maximum(house, fish) < 0.5, 0, np.where(fish > house, 2, 1))
    assert (result.labels == expected).all()
    assert (result.masks["house"] == (house >= 0.5)).all()


def test_the_grounders_threshold_is_at_a_half(pipe):
    result = pipe("a photo of a house", names=["house"], seed=7)
    pipe.grounder.threshold, before = 0.9999, pipe.grounder.threshold
    try:
        strict = pipe("a photo of a house", names=["house"], seed=7)
    finally:
        pipe.grounder.threshold = before
    assert strict.probabilities["house"].max() < result.probabilities["house"].min()


def test_a_list_of_prompts_is_one_batch(pipe):
    prompts = ["a photo of a house", "a photo of a fish and a key"]
    result = pipe(prompts, names=[["house"], ["key", "fish"]], seed=7)
    assert len(result.images) == 2 and result.names == ["house", "key", "fish"]
    assert result.masks["key"].shape == result.labels.shape == (2, 64, 64)
    assert not result.masks["key"][0].any() and set(np.unique(result.labels[0])) <= {0, 1}
    alone = pipe(prompts[1], names=["key", "fish"], seed=8)
    assert abs(result.probabilities["fish"][1] - alone.probabilities["fish"]).max() < 1e-3
    one = pipe(prompts[:1], names=["house"], seed=7)
    assert one.masks["house"].shape == (1, 64, 64)  # a list, though of one


def test_names_need_not_stand_in_the_prompt(pipe):
    result = pipe("a photo of a goldfish", names=["fish", "potted plant"])
    assert result.masks["potted plant"].shape == (64, 64)


def test_photographs(pipe):
    picture = pipe("a photo of a house", names=["house"], seed=7).images[0]
    result = pipe.ground(picture, names=["house", "fish"])
    assert result.masks["house"].shape == (64, 64)
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(picture))
    batch = pipe.ground([picture, picture], names=["house", "fish"])
    assert batch.labels.shape == (2, 64, 64)
    with pytest.raises(ValueError, match="resize them"):
        pipe.ground(Image.new("RGB", (32, 32)), names=["house"])


def test_the_name_as_whole_words(pipe):
    from ovseg.pipeline import _entities

    found = _entities("a goldfish, a Fish and a hen", ["fish", "hen", "cow"])
    assert [e.span for e in found] == [(14, 18), (25, 28), (-1, -1)]


def test_with_another_backbone(tiny_grounder, pipe, tiny_pipeline):
    taps = list(pipe.backbone.feature_spec.taps)
    same = UNetBackbone(tiny_pipeline, taps, steps=2, guidance_scale=2.0)
    assert GroundedDiffusion.from_pretrained(tiny_grounder, backbone=same).backbone is same
    with pytest.raises(ValueError, match="trained on features of another backbone"):
        GroundedDiffusion.from_pretrained(
            tiny_grounder, backbone=UNetBackbone(tiny_pipeline, taps, steps=2, tap_steps=(2,))
        )


@pytest.mark.parametrize(
    ("prompt", "names", "message"),
    [
        ("a house", "house", r"write \['house'\]"),
        ("a house", [], "at least one prompt and name"),
        ([], ["house"], "got 0 prompts"),
        (["a", "b"], [["house"]], "one per prompt"),
        ("a <|endoftext|>", ["<|endoftext|>"], "no tokens for the name"),
    ],
)
def test_refusals(pipe, prompt, names, message):
    with pytest.raises(ValueError, match=message):
        pipe(prompt, names=names)


def test_a_folder_without_a_grounder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no grounder in"):
        GroundedDiffusion.from_pretrained(tmp_path)
