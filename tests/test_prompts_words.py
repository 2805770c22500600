"""Names found in texts, and lists of words."""

import re

import pytest
import yaml

from ovseg.clipart.captions import corpus
from ovseg.clipart.scenes import TEXTURES
from ovseg.data.prompts_words import (
    article,
    composed,
    find_names,
    nameless,
    names_only,
    plural,
    read_words,
)
from ovseg.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    classes = [
        {"key": "bus", "plural": "buses", "synonyms": ["coach"]},
        {"key": "school_bus", "name": "school bus"},
        {"key": "plant", "synonyms": ["Café tree", "straße"]},
        {"key": "pottedplant", "name": "potted plant"},
        {"key": "person", "plural": "people", "synonyms": ["woman"]},
        {"key": "babybed", "name": "baby's bed"},
        {"key": "jet", "synonyms": ["plane"]},
        {"key": "plane"},
    ]
    colored = [{**entry, "color": [place, 0, 0]} for place, entry in enumerate(classes)]
    path = tmp_path_factory.mktemp("words") / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "classes": colored, "splits": {"1": []}}))
    return Vocabulary.load(path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a bus", ["bus:bus"]),
        ("A BUS and Buses", ["bus:BUS", "bus:Buses"]),
        ("two coaches of women", ["bus:coaches", "person:women"]),
        ("a school bus", ["school_bus:school bus"]),
        ("a school-bus, buses", ["school_bus:school-bus", "bus:buses"]),
        ("a school, bus", ["bus:bus"]),
        ("a school. Bus", ["bus:Bus"]),
        ("potted plants by a plant in a potted bus", ["pottedplant:potted plants"]),
        ("busy businessmen, omnibus, bus_stop, bus2, implants", []),
        ("the bus's door", ["bus:bus"]),
        ("the baby’s bed", ["babybed:baby’s bed"]),
        ("a plane", ["plane:plane"]),
        ("", []),
        ("school", []),
    ],
)
def test_names_are_whole_words_the_longest_first(vocabulary, text, found):
    names = find_names(text, vocabulary)
    got = [f"{vocabulary[e.class_id].key}:{e.name}" for e in names]
    if text.startswith("potted"):
        assert got == [*found, "plant:plant", "bus:bus"]
    else:
        assert got == found
    for entity in names:
        assert text[slice(*entity.span)] == entity.name


def test_spans_are_right_under_unicode(vocabulary):
    text = composed("😀 İstanbul: ein BUS in der STRASSE, a cafe\u0301 tree 🚌 bus")
    found = [(e.name, text[slice(*e.span)]) for e in find_names(text, vocabulary)]
    assert [name for name, _ in found] == ["BUS", "STRASSE", "caf\u00e9 tree", "bus"]
    assert all(name == part for name, part in found)


def test_which_classes_a_text_names(vocabulary):
    assert names_only("a bus and a coach", (1,), vocabulary)
    assert not names_only("a bus and a plant", (1,), vocabulary)
    assert nameless(("on a road", "in a bus", "near plants"), vocabulary) == ("on a road",)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("car", "cars"),
        ("puppy", "puppies"),
        ("monkey", "monkeys"),
        ("couch", "couches"),
        ("box", "boxes"),
        ("woman", "women"),
        ("man", "men"),
        ("human", "humans"),
        ("railway train", "railway trains"),
    ],
)
def test_plurals(word, expected):
    assert plural(word) == expected


def test_articles():
    assert [article(w) for w in ("oak", "Armchair", "red", "")] == ["an", "an", "a", "a"]


@pytest.mark.parametrize("name", ["clipart", "voc"])
def test_shipped_words_name_no_class(name):
    words = Vocabulary.load(name)
    for key in ("adjectives", "places"):
        for source in ("english", "clipart"):
            texts = tuple(read_words(key, source))
            assert len(set(texts)) == len(texts) >= 12
            assert nameless(texts, words) == texts


def test_shipped_definitions_are_of_all_classes_and_name_no_other():
    words = Vocabulary.load("voc")
    definitions = read_words("definitions", "english")
    assert list(definitions) == [c.name for c in words.classes]
    for name, text in definitions.items():
        assert names_only(text, (words.id_of(name),), words)


def test_the_clip_art_words_are_of_its_language():
    known = {*" ".join(corpus(0, 0)).split(), *TEXTURES, "on", "an", "background"}
    for key in ("adjectives", "places"):
        assert set(" ".join(read_words(key, "clipart")).split()) <= known


def test_words_that_are_given_or_in_a_file(tmp_path):
    assert read_words("places", None) == [] and read_words("definitions", None) == {}
    assert read_words("places", ["here"]) == ["here"]
    path = tmp_path / "mine.yaml"
    path.write_text("places: [at home]\n")
    assert read_words("places", str(path)) == ["at home"]
    with pytest.raises(ValueError, match="mine.yaml has no adjectives"):
        read_words("adjectives", str(path))
    path.write_text("places: [")
    with pytest.raises(ValueError, match="mine.yaml is no YAML"):
        read_words("places", str(path))
    with pytest.raises(FileNotFoundError, match="no words 'latin': give one of clipart, english"):
        read_words("places", "latin")


@pytest.mark.parametrize(
    ("key", "source", "words"),
    [
        ("places", [], "places must be a list of texts without braces, got []"),
        ("places", ["in {objects}"], "without braces"),
        ("adjectives", ["red", 3], "got ['red', 3]"),
        ("adjectives", [" "], "list of texts"),
        ("definitions", {"car": ""}, "a mapping of classes to texts"),
        ("definitions", ["car"], "a mapping of classes to texts"),
    ],
)
def test_bad_words(key, source, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        read_words(key, source)
