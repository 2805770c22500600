"""ovseg.annotators.clip_score: CLIP's opinion of each name, by a tiny random model."""

import pytest
import torch
from acme.annotator import ColorAnnotator
from acme.backbone import ToyBackbone
from conftest import tiny_captions, train_tokenizer
from toy_data import data_module, live_stream, request, write_dataset
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from ovseg.annotators.clip_score import ClipScoreAnnotator
from ovseg.data.manifest import read_manifest
from ovseg.data.shard_file import read_records, shard_name
from ovseg.quality import QualityFilter
from ovseg.refilter import refilter
from ovseg.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("clip")
    words = train_tokenizer(tiny_captions())
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "initializer_factor": 4.0}
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    text = {**small, **ids, "pad_token_id": words.pad_token_id, "vocab_size": len(words)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = {**small, "image_size": 32, "patch_size": 8}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    square = {"height": 32, "width": 32}
    processor = CLIPImageProcessorPil(size=square, crop_size=square)
    for part in (model, words, processor):
        part.save_pretrained(where)
    return str(where)


def bound(folder, **arguments):
    made = ClipScoreAnnotator(ColorAnnotator("all", instances=True), folder, **arguments)
    made.bind(Vocabulary.load("clipart", "1"))
    return made


def test_each_name_is_compared_with_its_own_image(folder):
    prompts = ["a photo of a car", "a photo of a bus and a fish", "a photo of nothing"]
    names = [("car",), ("bus", "fish"), ()]
    asked = [request(i, p, *n) for i, (p, n) in enumerate(zip(prompts, names, strict=True))]
    sample, made = ToyBackbone().sample(asked), bound(folder)
    annotation, alone = made.annotate(sample), made.annotator.annotate(sample)
    for name in ("masks", "scores", "found", "instances"):
        assert torch.equal(getattr(annotation, name), getattr(alone, name))
    assert annotation.clip.shape == (3, 2) and not annotation.clip[2].any()
    assert annotation.clip[0, 1] == 0
    for row, column, name in ((0, 0, "car"), (1, 0, "bus"), (1, 1, "fish")):
        pixels = made.processor([sample.images[row].permute(1, 2, 0).numpy()], return_tensors="pt")[
            "pixel_values"
        ]
        words = made.tokenizer(f"a photo of a {name}", return_tensors="pt")
        with torch.no_grad():
            output = made.model(**words, pixel_values=pixels)
        one, other = output.image_embeds[0], output.text_embeds[0]
        cosine = torch.dot(one, other) / one.norm() / other.norm()
        torch.testing.assert_close(annotation.clip[row, column], cosine.clamp(min=0))
    facts = made.describe()
    assert facts["digest"].endswith(made.checkpoint.digest)
    assert facts["clip"]["text"] == "a photo of a {name}"


def test_it_is_stored_and_filtered_by_again(folder, tmp_path):
    stream = live_stream(6)
    stream.annotator = ClipScoreAnnotator(stream.annotator, folder)
    write_dataset(tmp_path / "set", data_module(predict={"data": stream}))
    facts = [f for r in read_records(tmp_path / "set" / shard_name(0)) for f in r.facts if f.found]
    assert all(0 <= one.clip <= 1 for one in facts)
    refilter(tmp_path / "set", tmp_path / "new", QualityFilter(min_clip=1.0))
    assert read_manifest(tmp_path / "new")["yield"]["reasons"] == {"clip < 1": 6}


def test_arguments(folder, tmp_path):
    with pytest.raises(ValueError, match="needs {name} once, got 'a photo'"):
        bound(folder, text="a photo")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="is a model of type gpt2; ClipScoreAnnotator takes clip"):
        bound(str(tmp_path))
