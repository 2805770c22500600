"""ovseg.pipeline: prompts and names to images and masks."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from ovseg import GroundedDiffusion
from ovseg.backbones.unet import UNetBackbone
from ovseg.grounders.folder import load_grounder, read_config, save_grounder, weights_digest
from ovseg.vocabulary import Vocabulary

FILES = ["README.md", "config.json", "model.safetensors"]


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
    with pytest.raises(ValueError, match="must have the backbone's size, got 64x64, 32x64; resize"):
        pipe.ground([picture, picture.resize((32, 64))], names=["house"])


def test_the_name_as_whole_words(pipe):
    from ovseg.pipeline import _entities

    found = _entities("a goldfish, a Fish and a hen", ["fish", "hen", "cow"])
    assert [e.span for e in found] == [(14, 18), (25, 28), (-1, -1)]


def test_with_another_backbone(tiny_grounder, pipe, tiny_pipeline):
    taps = list(pipe.backbone.feature_spec.taps)
    same = UNetBackbone(tiny_pipeline, taps, steps=2, guidance_scale=2.0)
    assert GroundedDiffusion.from_pretrained(tiny_grounder, backbone=same).backbone is same
    other = UNetBackbone(tiny_pipeline, taps, steps=2, tap_steps=(2,))
    with pytest.raises(ValueError, match=r"another backbone: timesteps \[1.0\] there, \[501.0\] h"):
        GroundedDiffusion.from_pretrained(tiny_grounder, backbone=other)
    fewer = UNetBackbone(tiny_pipeline, taps[:1], steps=2, tap_steps=(1, 2))
    with pytest.raises(ValueError) as caught:
        GroundedDiffusion(fewer, pipe.grounder)
    assert str(caught.value) == (
        "the grounder (there) needs other features than the backbone (here) gives: taps only "
        f"there: {taps[1]}; steps 1 there, 2 here"
    )


@pytest.mark.parametrize(
    ("prompt", "names", "message"),
    [
        ("a house", "house", r"write \['house'\]"),
        ("a house", [], "at least one prompt and name"),
        ([], ["house"], "got 0 prompts"),
        (["a", "b"], [["house"]], "one per prompt"),
        (["a", "b"], [["house"], "fish"], r"one per prompt; .* names = \[\['house'\], 'fish'\]"),
        ("a <|endoftext|>", ["<|endoftext|>"], "no tokens for the name"),
    ],
)
def test_refusals(pipe, prompt, names, message):
    with pytest.raises(ValueError, match=message):
        pipe(prompt, names=names)


def test_another_dtype_is_one_line(tiny_grounder):
    model = GroundedDiffusion.from_pretrained(tiny_grounder)
    for cast in (lambda: model.to(torch.float16), model.backbone.half, model.backbone.double):
        with pytest.raises(ValueError, match="of dtype float32 cannot be cast to float.*: build"):
            cast()
    assert {p.dtype for p in model.grounder.parameters()} == {torch.float32}
    model.backbone.float()  # as it is
    model.grounder.half()
    with pytest.raises(ValueError, match="weights are float16 on cpu, .* float32 on cpu: bring"):
        model("a photo of a house", names=["house"])


def test_a_folder_without_a_grounder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no grounder in"):
        GroundedDiffusion.from_pretrained(tmp_path)


def results_of(pipe) -> dict:
    scores = {"miou": 46.5, "images": 200, "presence": 70.25}
    return {"two_unseen": scores | {"weights": weights_digest(pipe.grounder)}}


def names_of(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same_masks(one: GroundedDiffusion, other: GroundedDiffusion) -> bool:
    asked = {"prompt": "a photo of a house and a fish", "names": ["house", "fish"], "seed": 3}
    first, second = one(**asked), other(**asked)
    soft = all((first.probabilities[n] == second.probabilities[n]).all() for n in first.names)
    pictures = np.array_equal(*(np.asarray(result.images[0]) for result in (first, second)))
    return soft and pictures and (first.labels == second.labels).all()


def test_saved_and_loaded_masks_are_equal_bit_for_bit(pipe, tiny_grounder, tmp_path):
    pipe.save_pretrained(tmp_path / "out")
    assert names_of(tmp_path / "out") == names_of(tiny_grounder) == FILES
    for name in FILES:  # what `fit` writes and what is saved is the same, byte for byte
        assert (tmp_path / "out" / name).read_bytes() == (tiny_grounder / name).read_bytes()
    assert same_masks(pipe, GroundedDiffusion.from_pretrained(tmp_path / "out"))
    assert names_of(tmp_path) == ["out"]


def test_pushed_and_loaded_from_the_hub(pipe, hub, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results_of(pipe)))
    url = pipe.push_to_hub("owner/name", private=True, model_card_kwargs={"results": path})
    assert url == "https://hub.test/owner/name/commit/1"
    assert names_of(hub.remote / "owner" / "name") == sorted([*FILES, "results.json"])
    assert hub.uploads[0]["repo_id"] == "owner/name" and hub.uploads[0]["repo_type"] == "model"
    torch.save({"a": torch.zeros(1)}, hub.remote / "owner" / "name" / "pytorch_model.bin")
    loaded = GroundedDiffusion.from_pretrained("owner/name", revision="v1", local_files_only=True)
    assert hub.asked[-1]["revision"] == "v1" and hub.asked[-1]["local_files_only"] is True
    assert names_of(hub.cache / "owner" / "name") == sorted([*FILES[1:], "results.json"])
    assert loaded.backbone.files.local_files_only is True
    assert same_masks(pipe, loaded)
    loaded.push_to_hub("owner/again")  # the numbers go along
    card = ModelCard.load(hub.remote / "owner" / "again" / "README.md")
    assert card.data.eval_results[0].metric_value == 46.5


def test_numbers_stay_with_the_weights_that_they_are_of(pipe, tmp_path):
    path, out = tmp_path / "results.json", tmp_path / "out"
    path.write_text(json.dumps(results_of(pipe)))
    pipe.save_pretrained(out, results=path)
    assert "| two_unseen | 200 | 46.5 | – | – | 70.2 |" in (out / "README.md").read_text()
    loaded = GroundedDiffusion.from_pretrained(out)
    loaded.save_pretrained(out)
    assert json.loads((out / "results.json").read_text()) == results_of(pipe)
    assert "46.5" in loaded.generate_model_card().text
    loaded.grounder.threshold = 0.3
    for take in (loaded.generate_model_card, partial(loaded.save_pretrained, tmp_path / "other")):
        with pytest.raises(ValueError, match="results.json are of another grounder"):
            take(results=path)
    assert not (tmp_path / "other").exists()
    loaded.save_pretrained(out)
    assert names_of(out) == FILES and "Not measured." in (out / "README.md").read_text()


def test_what_cannot_be_saved(pipe, tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and holds no grounder"):
        pipe.save_pretrained(tmp_path / "bert")
    with pytest.raises(FileNotFoundError, match="no results .*none.json"):
        pipe.save_pretrained(tmp_path / "out", results=tmp_path / "none.json")
    bare = GroundedDiffusion(pipe.backbone, pipe.grounder)
    with pytest.raises(ValueError, match="not known which classes the grounder was trained with"):
        bare.save_pretrained(tmp_path / "out")
    assert names_of(tmp_path) == ["bert"] and names_of(tmp_path / "bert") == ["notes.txt"]
    named = GroundedDiffusion(pipe.backbone, pipe.grounder, Vocabulary.load("clipart"))
    assert named.trained_on == pipe.trained_on


def test_a_grounder_keeps_what_it_was_taught(pipe, tmp_path):
    vocabulary = Vocabulary.load("clipart")
    every = vocabulary.select("all")
    save_grounder(pipe.grounder, tmp_path / "all", pipe.backbone, vocabulary, every, {"pseudo"})
    loaded = load_grounder(tmp_path / "all", pipe.backbone)
    GroundedDiffusion(pipe.backbone, loaded, vocabulary).save_pretrained(tmp_path / "again")
    facts, again = (read_config(tmp_path / name)["vocabulary"] for name in ("all", "again"))
    assert {*again["trained_on"]} == {*facts["seen"], *facts["unseen"]}
    assert again["practices"] == ["pseudo"]
    other = GroundedDiffusion(pipe.backbone, loaded, Vocabulary.load("clipart", "2"))
    assert {*other.trained_on["trained_on"]} == {*facts["trained_on"]}


def test_an_absent_grounder_is_one_line(hub):
    with pytest.raises(FileNotFoundError) as caught:
        GroundedDiffusion.from_pretrained("owner/name")
    text = str(caught.value)
    assert text.startswith("cannot find config.json and model.safetensors of 'owner/name': ")
    assert "no folder" in text and "cache" in text and "https://" in text and "\n" not in text
