"""Rich prompts: words, shares and spans; the classes are those of the templates."""

import re
from collections import Counter

import pytest

from ovseg.data.prompts import TemplatePrompts
from ovseg.data.prompts_rich import RichPrompts
from ovseg.vocabulary import Vocabulary

PLACES = ["in a park", "on an old road"]


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load("clipart", "1")


def made(prompts, vocabulary, count, seed=0):
    return [prompts.request(index, vocabulary, seed) for index in range(count)]


def test_without_words_they_are_the_templates(vocabulary):
    arguments = {
        "objects": {1: 1, 2: 3},
        "classes": "all",
        "templates": ["{objects}", "a {objects}"],
    }
    plain = made(TemplatePrompts(**arguments), vocabulary, 40)
    assert made(RichPrompts(**arguments), vocabulary, 40) == plain


def test_words_change_neither_classes_nor_seeds(vocabulary):
    arguments = {"objects": {1: 1, 2: 1, 3: 1}, "classes": "all", "weights": {"car": 3}}
    rich = RichPrompts(**arguments, synonyms=0.5, adjectives="clipart")
    pairs = zip(
        made(rich, vocabulary, 60),
        made(TemplatePrompts(**arguments), vocabulary, 60),
        strict=True,
    )
    for one, other in pairs:
        assert [e.class_id for e in one.entities] == [e.class_id for e in other.entities]
        assert one.seed == other.seed


def test_every_word_stands_where_it_should(vocabulary):
    adjectives = ["red", "old"]
    prompts = RichPrompts(
        {1: 1, 2: 1},
        "all",
        ["a photo of {objects}, {place}", "{place}: {objects}"],
        synonyms=0.3,
        adjectives=adjectives,
        places=PLACES,
    )
    phrase = r"(?:an?) (?:(?:red|old) )?[a-z]+"
    inside = "|".join(PLACES)
    whole = re.compile(
        rf"(?:a photo of {phrase}(?: and {phrase})?, (?:{inside})"
        rf"|(?:{inside}): {phrase}(?: and {phrase})?)"
    )
    requests = made(prompts, vocabulary, 600)
    words, used, places = Counter(), Counter(), Counter()
    for request in requests:
        assert whole.fullmatch(request.prompt)
        places.update(place for place in PLACES if place in request.prompt)
        for entity in request.entities:
            entry = vocabulary[entity.class_id]
            start, end = entity.span
            assert request.prompt[start:end] == entity.name in (entry.name, *entry.synonyms)
            before = request.prompt[:start].split()
            adjective = before.pop() if before[-1] in adjectives else ""
            first = (adjective or entity.name)[0]
            assert before[-1] == ("an" if first in "aeiou" else "a")
            words["synonym" if entity.name != entry.name else "name"] += 1
            used[adjective] += 1
    assert words.total() == 900
    assert words["synonym"] / 900 == pytest.approx(0.3, abs=0.05)
    assert used[""] / 900 == pytest.approx(0.5, abs=0.05)
    assert used["red"] / 900 == pytest.approx(0.25, abs=0.05)
    assert places.total() == 600 and places[PLACES[0]] / 600 == pytest.approx(0.5, abs=0.06)


def test_definitions_follow_the_name(vocabulary):
    definitions = {"car": "with four wheels", "bus": "longer than a car"}
    prompts = RichPrompts({2: 1}, ["car", "bus"], definitions=definitions, definition_share=1)
    request = prompts.request(0, vocabulary, 0)
    car, bus = "a car (with four wheels)", "a bus"  # what a bus is names another class
    assert request.prompt in (f"a photo of {car} and {bus}", f"a photo of {bus} and {car}")
    assert {request.prompt[slice(*e.span)] for e in request.entities} == {"car", "bus"}
    none = RichPrompts({1: 1}, ["car"], definitions=definitions, definition_share=0)
    assert none.request(0, vocabulary, 0).prompt == "a photo of a car"


def test_definitions_of_unknown_classes_are_refused(vocabulary, tmp_path):
    wrong = RichPrompts({1: 1}, ["car"], definitions={"car": "here", "buss": "long"})
    with pytest.raises(ValueError, match="^definitions: unknown class 'buss' .*; nearest: bus"):
        wrong.request(0, vocabulary, 0)
    path = tmp_path / "words.yaml"
    path.write_text("definitions: {cart: small}")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: unknown class 'cart'"):
        RichPrompts(definitions=str(path)).request(0, vocabulary, 0)
    arguments = {"objects": {1: 1}, "classes": ["car"], "definition_share": 1}
    for given in ({"automobile": "on four wheels"}, {"car": "on four wheels"}):  # any word for it
        request = RichPrompts(**arguments, definitions=given).request(0, vocabulary, 0)
        assert request.prompt == "a photo of a car (on four wheels)"
    shipped = RichPrompts(**arguments, definitions="english")  # it defines classes of VOC
    assert shipped.request(0, vocabulary, 0).prompt.endswith("(a road vehicle with four wheels)")


def test_words_that_name_a_class_are_left_out(vocabulary):
    prompts = RichPrompts(
        {1: 1}, "all", ["{objects} {place}"], places=["by a tree", "near cars", "here"]
    )
    assert all(r.prompt.endswith(" here") for r in made(prompts, vocabulary, 20))
    prompts = RichPrompts({1: 1}, "all", adjectives=["star", "moon"], adjective_share=1)
    with pytest.raises(ValueError, match="all adjectives name a class of 'clipart': star, moon"):
        prompts.request(0, vocabulary, 0)


def test_pure_and_decided_by_the_seed(vocabulary):
    arguments = {"templates": ["{objects} {place}"], "synonyms": 0.4}
    arguments |= {"adjectives": "english", "places": "english", "definitions": "english"}
    first = made(RichPrompts(**arguments), vocabulary, 30, seed=2)
    again = RichPrompts(**arguments)
    assert [again.request(i, vocabulary, 2) for i in reversed(range(30))] == first[::-1]
    assert made(again, vocabulary, 30, seed=3) != first
    facts = again.describe()
    assert facts["class_path"] == "ovseg.data.prompts_rich.RichPrompts"
    assert facts["synonyms"] == 0.4 and "red" in facts["adjectives"]
    assert facts != RichPrompts(**arguments | {"adjectives": ["red"]}).describe()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"synonyms": 1.5}, "must be shares in [0, 1], got 1.5, 0.5, 0.5"),
        ({"adjective_share": -1}, "must be shares in [0, 1]"),
        ({"places": PLACES}, "go together, got 2 places and ['a photo of {objects}']"),
        ({"templates": ["{objects} {place}"]}, "go together, got 0 places"),
        ({"templates": ["{objects} {x}"]}, "may have the places {objects} and {place}, got {x} in"),
        ({"templates": ["{place}"], "places": PLACES}, "needs {objects} once"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        RichPrompts(**arguments)
