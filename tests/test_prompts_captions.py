"""Captions of a file: which are used, what is found in them, in which order they come."""

import hashlib
import json
import pickle
import re
from collections import Counter

import pytest
from acme.annotator import ColorAnnotator

from ovseg.backbones.unet import UNetBackbone
from ovseg.data.live import LiveStream
from ovseg.data.prompts_captions import CaptionPrompts
from ovseg.vocabulary import Vocabulary

LINES = [
    "A potted plant beside two Dogs and another dog",  # dog is unseen
    "",
    "A man on a motorcycle — très vite 🏍 — past a bus",
    "Nothing of interest",
    "a small table with a bottle on it",
    "  puppies   chase a cat ",  # puppies: dog
    "a bus, a bus and a coach",
]
USED = {
    "A man on a motorcycle — très vite 🏍 — past a bus": ["man", "motorcycle", "bus"],
    "a small table with a bottle on it": ["table", "bottle"],
    "a bus, a bus and a coach": ["bus"],
}


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load("voc", "1")


@pytest.fixture
def file(tmp_path) -> str:
    path = tmp_path / "captions.txt"
    path.write_text("\r\n".join(LINES), encoding="utf-8-sig", newline="")
    return str(path)


def made(prompts, vocabulary, count, seed=0):
    return [prompts.request(index, vocabulary, seed) for index in range(count)]


def test_captions_of_the_seen_classes(file, vocabulary):
    prompts = CaptionPrompts(file, negative_prompt="blurred")
    requests = made(prompts, vocabulary, 3)
    assert {r.prompt: [e.name for e in r.entities] for r in requests} == USED
    for request in requests:
        assert request.negative_prompt == "blurred"
        for entity in request.entities:
            assert request.prompt[slice(*entity.span)] == entity.name
            assert vocabulary.id_of(entity.name) == entity.class_id
    with open(file, "rb") as content:
        digest = hashlib.sha256(content.read()).hexdigest()[:16]
    assert prompts.describe() == {
        "class_path": "ovseg.data.prompts_captions.CaptionPrompts",
        "file": "captions.txt",
        "digest": digest,
        "key": None,
        "classes": "seen",
        "max_words": 50,
        "negative_prompt": "blurred",
        "captions": {"used": 3, "without_name": 1, "other_class": 2, "too_long": 0},
    }


def test_other_classes_and_shorter_captions(file, vocabulary):
    everything = CaptionPrompts(file, classes="all")
    found = {r.prompt: [e.name for e in r.entities] for r in made(everything, vocabulary, 5)}
    assert len(found) == 5
    assert found["A potted plant beside two Dogs and another dog"] == ["potted plant", "Dogs"]
    assert found["puppies chase a cat"] == ["puppies", "cat"]
    assert everything.describe()["captions"]["without_name"] == 1
    named = CaptionPrompts(file, classes=["bus", "dog"])
    assert {r.prompt for r in made(named, vocabulary, 2)} == {"a bus, a bus and a coach"}
    assert named.named_classes(vocabulary) == {vocabulary.id_of("bus")}  # no caption has a dog
    short = CaptionPrompts(file, classes="all", max_words=7)
    assert {len(r.prompt.split()) for r in made(short, vocabulary, 6)} == {4, 7}
    assert short.describe()["captions"]["too_long"] == 3


def test_another_split_is_another_choice(file):
    prompts = CaptionPrompts(file)
    one, three = Vocabulary.load("voc", "1"), Vocabulary.load("voc", "3")
    first = made(prompts, one, 3)
    # unseen in split 3: bus, cat, chair, cow, dining table
    assert {r.prompt for r in made(prompts, three, 3)} == {LINES[0]}
    assert made(prompts, one, 3) == first


def test_the_order_is_a_permutation_of_every_epoch(file, vocabulary):
    prompts = CaptionPrompts(file, classes="all")
    requests = made(prompts, vocabulary, 200, seed=7)
    texts = [request.prompt for request in requests]
    for start in range(0, 200, 5):
        assert len(set(texts[start : start + 5])) == 5
    orders = Counter(tuple(texts[start : start + 5]) for start in range(0, 200, 5))
    assert len(orders) > 25
    again = pickle.loads(pickle.dumps(CaptionPrompts(file, classes="all")))
    assert [again.request(i, vocabulary, 7) for i in reversed(range(200))] == requests[::-1]
    assert [r.prompt for r in made(prompts, vocabulary, 200, seed=8)] != texts
    assert len({r.seed for r in requests}) == 200


def test_objects_of_json(tmp_path, vocabulary):
    path = tmp_path / "captions.jsonl"
    accent = "un cafe\u0301 et un BUS"  # e and its accent become one character
    lines = [{"text": "a cow", "caption": accent}, {"text": "no", "caption": "a cat"}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    requests = made(CaptionPrompts(str(path)), vocabulary, 2)
    (bus,) = (r for r in requests if "BUS" in r.prompt)
    assert bus.prompt == "un caf\u00e9 et un BUS" and bus.entities[0].span == (14, 17)
    assert bus.prompt[14:17] == "BUS"
    by_text = CaptionPrompts(str(path), key="text")
    (cow,) = made(by_text, vocabulary, 1)
    assert cow.prompt == "a cow"
    assert by_text.describe()["key"] == "text"  # the same file, other captions


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "captions.jsonl, line 2 is no JSON"),
        ("[3]", "captions.jsonl, line 2 has no text 'caption'"),
        ('{"text": "a cat"}', "line 2 has no text 'caption': one JSON object per line"),
        ('{"caption": null}', "line 2 has no text 'caption'"),
    ],
)
def test_bad_lines(line, words, tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text(f'{{"caption": "a cat"}}\n{line}\n')
    with pytest.raises(ValueError, match=re.escape(words)):
        CaptionPrompts(str(path))


def test_files_that_cannot_be_used(tmp_path, vocabulary):
    with pytest.raises(FileNotFoundError, match="no captions none.txt"):
        CaptionPrompts("none.txt")
    path = tmp_path / "captions.txt"
    path.write_bytes(b"a cat \xff")
    with pytest.raises(ValueError, match="captions.txt is no text in UTF-8"):
        CaptionPrompts(str(path))
    for name in ("empty.txt", "empty.jsonl"):
        (tmp_path / name).write_text("\n \n")
        with pytest.raises(ValueError, match=f"{name} holds no captions: give a file with one per"):
            CaptionPrompts(str(tmp_path / name))
    path.write_text("a dog\nnothing\na cat and a long line\n")
    with pytest.raises(ValueError, match="max_words must be >= 1, got 0"):
        CaptionPrompts(str(path), max_words=0)
    prompts = CaptionPrompts(str(path), max_words=3)
    with pytest.raises(ValueError, match="make a request first"):
        prompts.describe()
    words = "1 name no class, 1 name another one, 1 have more than 3 words"
    with pytest.raises(ValueError, match=words):
        prompts.request(0, vocabulary, 0)
    with pytest.raises(ValueError, match="index and seed must be >= 0, got -1 and 0"):
        prompts.request(-1, vocabulary, 0)


def test_captions_that_the_model_cannot_be_told_are_named_before_it_starts(
    file, tmp_path, tiny_pipeline, vocabulary
):
    """32 tokens fit into the tiny text encoder; one of the three captions in use has more."""
    backbone = UNetBackbone(tiny_pipeline, ["mid_block"])
    stream = LiveStream(CaptionPrompts(file), ColorAnnotator("all"), 4)
    stream.bind(vocabulary)
    words = "1 of 3 captions of .*captions.txt cannot be drawn by this model, first 'A man on a"
    with pytest.raises(ValueError, match=f"{words}.*'bus' is cut off.*or lower max_words, 50"):
        stream.check(backbone)
    assert not backbone._loaded  # the tokenizer was enough
    stream = LiveStream(CaptionPrompts(file, max_words=8), ColorAnnotator("all"), 4)
    stream.bind(vocabulary)
    stream.check(backbone)
