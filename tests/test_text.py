"""ovseg.backbones.text: a name's tokens, found by its characters."""

from __future__ import annotations

import json
from pathlib import Path

import families
import pytest
import torch

from ovseg.backbones.encoders import ClipText, FluxText, NameEmbeddings, SDXLText
from ovseg.backbones.files import PipelineFiles
from ovseg.backbones.text import (
    check_names,
    check_prompt,
    cut_of,
    entity_positions,
    positions_of,
    refuse_cut,
    tokens_of,
)
from ovseg.structures import Entity, Request


@pytest.fixture(scope="module")
def tokenizer(tiny_pipeline):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(tiny_pipeline, subfolder="tokenizer")


class Slow:
    """A tokenizer without offsets."""

    is_fast = False

    def __init__(self, tokenizer) -> None:
        self.inner = tokenizer

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def __call__(self, text: str, **options):
        return {"input_ids": self.inner(text)["input_ids"]}


def words(tokenizer, text: str, positions: list[int]) -> str:
    ids = tokenizer(text)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens([ids[p] for p in positions])
    return "".join(pieces).replace("</w>", " ").strip()


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ("a photo of a house and a fish", "fish", "fish"),
        ("a photo of a potted plant on a chair", "potted plant", "potted plant"),
        ("a  Photo of an\tUmbrella, red", "Umbrella", "umbrella"),
        ("two t-shirts and a tv", "t-shirts", "t - shirts"),
        ("a cat's house", "house", "house"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda t: t, Slow])
def test_positions_of_a_name(tokenizer, wrap, text, name, found):
    start = text.index(name)
    positions = positions_of(wrap(tokenizer), text, (start, start + len(name)), name)
    assert words(tokenizer, text, positions) == found
    assert positions == list(range(positions[0], positions[-1] + 1))


def test_counting_words_would_be_wrong(tokenizer):
    """ "zyx" is several tokens, so what follows is not where its word number says."""
    text = "a photo of a zyx and a fish"
    start = text.index("fish")
    (position,) = positions_of(tokenizer, text, (start, start + 4), "fish")
    assert position == len(tokenizer("a photo of a zyx and a")["input_ids"]) - 1 > 8


def test_slow_and_fast_tokenizers_agree(tokenizer):
    text = "A picture of an umbrella, 3 cats'  houses <|endoftext|> zyx"
    assert tokens_of(Slow(tokenizer), text) == tokens_of(tokenizer, text)


def test_names_that_cannot_be_found(tokenizer):
    text = "a photo of a house and a <|endoftext|>"
    with pytest.raises(ValueError, match="no tokens for the name '<|endoftext|>'"):
        positions_of(tokenizer, text, (25, len(text)), "<|endoftext|>")
    with pytest.raises(ValueError, match=r"span \(25, 99\) of 'tree' is not inside"):
        positions_of(tokenizer, text, (25, 99), "tree")


def test_a_name_at_the_last_place_that_is_not_cut(tokenizer):
    # 32 places: one opening and one closing token leave 30 words
    for count, fits in ((29, True), (30, False)):
        text = "a " * count + "house"
        span = (2 * count, 2 * count + 5)
        if fits:
            assert positions_of(tokenizer, text, span, "house") == [30]
        else:
            with pytest.raises(ValueError, match="'house' is cut off: it ends at token 32"):
                positions_of(tokenizer, text, span, "house")


def test_a_tokenizer_with_an_unknown_token():
    from transformers import CLIPTokenizer

    vocab = {p: i for i, p in enumerate(["a</w>", "c", "at</w>", "t</w>", "cat</w>", "a"])}
    vocab |= {"<|startoftext|>": 6, "<|endoftext|>": 7}
    merges = [("a", "t</w>"), ("c", "at</w>")]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=16)
    assert positions_of(tokenizer, "a cat", (2, 5), "cat") == [2]
    with pytest.raises(ValueError, match="no tokens for the name 'cow'"):
        positions_of(tokenizer, "a cow", (2, 5), "cow")


def test_entities_that_are_not_in_the_prompt_have_no_positions(tokenizer):
    request = Request(0, 0, "a cat", (Entity(1, "dog", (-1, -1)), Entity(2, "cat", (2, 5))))
    assert entity_positions(tokenizer, request) == [[], [2]]


def test_a_name_is_embedded_token_by_token(tiny_pipeline):
    text = ClipText(PipelineFiles(tiny_pipeline))
    text.load(torch.float32)
    embed = NameEmbeddings("a photograph of a {name}", "sentence")
    request = Request(0, 0, "", (Entity(1, "potted plant"), Entity(2, "plant")))
    with torch.no_grad():
        hidden = text.encode(["a photograph of a potted plant"]).states[0]
        name, other = embed.of(text, request)
    assert hidden.shape == (32, 32)
    end = len(text.tokenizer("a photograph of a potted plant")["input_ids"]) - 1
    # <start> a photograph of a = 0..4
    torch.testing.assert_close(name, hidden[5:end], atol=1e-6, rtol=0)
    assert (name.mean(0) - other.mean(0)).abs().max() > 0.1


def test_a_sentence_is_cut_where_the_tokenizer_truncates_it(tokenizer):
    assert cut_of(tokenizer, "a " * 30, 32) is None
    for text in ("a " * 31, "a house and a zyx, " * 5, "a photo of  " + "umbrellas\t" * 40):
        cut = cut_of(tokenizer, text, 32)
        ids = tokenizer(text, truncation=True, max_length=32)["input_ids"]
        told = tokenizer.decode(ids, skip_special_tokens=True)
        assert cut.tokens == len(tokenizer(text)["input_ids"]) > cut.room == 32
        kept = "".join(text[: cut.kept].split())
        following = text[cut.kept :].split()[0]
        assert "".join(told.split()).startswith(kept)
        assert not "".join(told.split()).startswith(kept + following)


def test_what_is_lost_is_said_unless_one_encoder_takes_all(tokenizer):
    text = "a " * 28 + "red house, all of wood " + "and very old " * 20
    cuts = [cut_of(tokenizer, text, room) for room in (16, 32, 500)]
    assert cuts[2] is None
    refuse_cut("prompt", text, cuts)
    with pytest.raises(ValueError, match="32 fit: the model would not be told ") as caught:
        refuse_cut("prompt", text, cuts[:2])
    line = str(caught.value)
    assert line.startswith(f"the prompt has {len(tokenizer(text)['input_ids'])} tokens, ")
    assert " ...'; shorten it" in line and len(line) < 160


@pytest.mark.parametrize("names", [["cat", " "], [""], ["cat", "dog", "cat"]])
def test_names_of_a_request_are_different_and_not_empty(names):
    with pytest.raises(ValueError, match=r"names must be different and not empty, got \["):
        check_names(Request(0, 0, "a cat", tuple(Entity(1, name) for name in names)))
    check_names(Request(0, 0, "a cat"))
    check_names(Request(0, 0, "a cat", (Entity(1, "cat"), Entity(1, "kitten"))))


def test_an_empty_prompt_is_for_images_without_names():
    check_prompt(Request(0, 0, ""))
    check_prompt(Request(0, 0, "things", (Entity(1, "cat"),)))
    with pytest.raises(ValueError, match="the prompt is empty: say .* e.g. 'cat'"):
        check_prompt(Request(0, 0, " ", (Entity(1, "cat"),)))


def edit(path: Path, drop: tuple[str, ...] = (), **changes) -> None:
    """Change a JSON file."""
    data = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in data.items() if k not in drop} | changes))


@pytest.mark.parametrize("said", [None, True, False])
def test_no_text_is_zeros_to_sdxl_unless_the_model_says_otherwise(said, tmp_path):
    folder, key = families.save(families.sdxl, tmp_path), "force_zeros_for_empty_prompt"
    edit(tmp_path / "model_index.json", (key,), **({} if said is None else {key: said}))
    text = SDXLText(PipelineFiles(folder))
    text.load(torch.float32)
    states, pooled = text.without_text(["", "a house"])
    assert not states[0].any() == (said is not False) and states[1].any()
    assert not pooled[0].any() == (said is not False) and pooled[1].any()


@pytest.mark.parametrize(("make", "most"), [(families.flux, 512), (families.schnell, 256)])
def test_t5_of_flux_is_given_what_the_model_was_trained_with(make, most, tmp_path):
    folder = families.save(make, tmp_path)
    edit(tmp_path / "tokenizer_2" / "tokenizer_config.json", model_max_length=1000)
    text = FluxText(PipelineFiles(folder))
    assert text.room("text_encoder_2") == most and text.room("text_encoder") == 32
    fits, long = ("a house " * count for count in (most // 8, most))
    text.check(Request(0, 0, fits))
    with pytest.raises(ValueError, match=f"{most} fit"):
        text.check(Request(0, 0, long))
    late = Request(0, 0, long + "fish", (Entity(1, "fish", (len(long), len(long) + 4)),))
    with pytest.raises(ValueError, match="'fish' is cut off"):
        text.positions(late)


def test_a_pipeline_without_a_text_encoder_is_refused(tmp_path):
    folder = families.save(families.sd2, tmp_path)
    edit(tmp_path / "model_index.json", text_encoder=[None, None])
    with pytest.raises(ValueError, match="has no text_encoder, without which"):
        ClipText(PipelineFiles(folder))
    with pytest.raises(ValueError, match="has no text_encoder and no text_encoder_2, without"):
        SDXLText(PipelineFiles(folder))
