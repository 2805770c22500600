"""Weights: how often classes occur, counted; weak classes; classes kept apart."""

import json
import math
import re
from collections import Counter
from itertools import combinations

import pytest

from ovseg.data import prompts_weighted
from ovseg.data.prompts import TemplatePrompts
from ovseg.data.prompts_weighted import WeightedChoice, weak_classes
from ovseg.vocabulary import Vocabulary

WEIGHTS = {"car": 4, "bus": 2.5, "boat": 0, "key": 3, "fish": 0.2}


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load("clipart", "1")


def chosen(choice, vocabulary, indices, seed=0):
    return [choice.ids(index, vocabulary, seed) for index in indices]


def weight_of(vocabulary, class_id):
    return WEIGHTS.get(vocabulary[class_id].name, 1)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_follow_the_weights_in_every_round(vocabulary, count):
    choice = WeightedChoice({count: 1}, "all", WEIGHTS, [])
    total = sum(weight_of(vocabulary, c.id) for c in vocabulary.classes)
    assert total == pytest.approx(15 + 9.7)  # 15 classes of weight 1, and those above
    size = math.ceil(19 / count)  # 19 classes have a weight
    groups = chosen(choice, vocabulary, range(60 * size))
    assert all(len(set(group)) == count for group in groups)
    for start in range(0, len(groups), size):
        counts = Counter(sum(groups[start : start + size], []))
        for entry in vocabulary.classes:
            expected = size * count * weight_of(vocabulary, entry.id) / total
            assert math.floor(expected) <= counts[entry.id] <= math.ceil(expected)
    counts = Counter(sum(groups, []))
    for entry in vocabulary.classes:  # over all rounds, what is rounded evens out
        share = weight_of(vocabulary, entry.id) / total
        assert abs(counts[entry.id] / (len(groups) * count) - share) < 0.012


def test_mixed_numbers_of_objects_keep_the_shares_too(vocabulary):
    prompts = TemplatePrompts(
        {1: 1, 2: 3}, ["car", "bus", "cat", "tree", "key"], weights={"car": 2}
    )
    requests = [prompts.request(i, vocabulary, 5) for i in range(1200)]
    counts = Counter(entity.name for request in requests for entity in request.entities)
    assert counts.total() == 300 + 2 * 900
    assert counts["car"] / 2100 == pytest.approx(2 / 6, abs=0.01)
    for name in ("bus", "cat", "tree", "key"):
        assert counts[name] / 2100 == pytest.approx(1 / 6, abs=0.01)


def test_a_class_with_too_much_weight_stands_in_every_prompt(vocabulary):
    words = ["car", "bus", "boat", "cat"]
    choice = WeightedChoice({2: 1}, words, {"car": 60, "bus": 2}, [])
    pairs = Counter(frozenset(pair) for pair in chosen(choice, vocabulary, range(400)))
    car, bus, boat, cat = (vocabulary.id_of(word) for word in words)
    # beside the car: bus, boat and cat in the ratio 2 : 1 : 1
    assert pairs[frozenset({car, bus})] == 200
    assert pairs[frozenset({car, boat})] + pairs[frozenset({car, cat})] == 200
    assert pairs[frozenset({car, cat})] == pytest.approx(100, abs=15)
    every = WeightedChoice({4: 1}, words, {"car": 60}, [])
    assert sorted(every.ids(3, vocabulary, 0)) == sorted([car, bus, boat, cat])


def test_pure_and_decided_by_the_seed(vocabulary):
    choice = WeightedChoice({1: 1, 2: 1}, "all", WEIGHTS, [["car", "bus"]])
    first = chosen(choice, vocabulary, range(60), seed=3)
    prompts_weighted._round.cache_clear()
    same = WeightedChoice({1: 1, 2: 1}, "all", WEIGHTS, [["car", "bus"]])
    assert chosen(same, vocabulary, reversed(range(60)), seed=3) == first[::-1]
    assert chosen(same, vocabulary, range(60), seed=4) != first


def test_classes_are_kept_apart_and_still_balanced(vocabulary):
    apart = [["car", "bus", "boat"], ["cat", "bird"]]
    choice = WeightedChoice({2: 1}, "all", {}, apart)
    pairs = chosen(choice, vocabulary, range(2000))
    for start in range(0, 2000, 10):  # equal weights: a round of ten pairs has every class once
        assert set(sum(pairs[start : start + 10], [])) == set(range(1, 21))
    ids = [[vocabulary.id_of(name) for name in group] for group in apart]
    forbidden = {frozenset(pair) for group in ids for pair in combinations(group, 2)}
    assert len(forbidden) == 4
    everything = {frozenset(pair) for pair in combinations(range(1, 21), 2)}
    assert {frozenset(pair) for pair in pairs} == everything - forbidden
    threes = chosen(WeightedChoice({3: 1}, "all", WEIGHTS, apart), vocabulary, range(300))
    assert not [t for t in threes if any(pair <= set(t) for pair in forbidden)]


def test_classes_without_weight_are_not_named(vocabulary):
    prompts = TemplatePrompts({1: 1}, ["car", "bus", "cat"], weights={"cat": 0, "bus": 0.1})
    assert prompts.named_classes(vocabulary) == {vocabulary.id_of(n) for n in ("car", "bus")}


def test_limits_that_cannot_be_kept(vocabulary):
    words = ["car", "bus", "cat"]
    for weights, apart in (({}, [["car", "bus"]]), ({"cat": 9}, [["car", "cat"]])):
        choice = WeightedChoice({2: 1}, words, weights, apart)
        with pytest.raises(ValueError, match="never_together leaves no prompts of 2 objects"):
            chosen(choice, vocabulary, range(8))
    choice = WeightedChoice({2: 1}, words, {"cat": 9}, [["car", "bus"]])  # the cat with either
    assert all(vocabulary.id_of("cat") in pair for pair in chosen(choice, vocabulary, range(8)))


def write(path, results) -> str:
    path.write_text(json.dumps(results))
    return str(path)


def test_weak_classes_of_results(tmp_path, vocabulary):
    streams = {
        "one": {"miou": 60, "per_class": {"car": 90.0, "bus": 30.0}},
        "two": {"miou": 70, "per_class": {"car": 70.0}},
    }
    path = write(tmp_path / "results.json", streams)
    weights = {"car": 1 - 0.8 + 0.05, "bus": 1 - 0.3 + 0.05}
    assert weak_classes(path) == pytest.approx(weights)
    prompts = TemplatePrompts({1: 1}, ["car", "bus"], weights=path)
    assert prompts.describe()["weights"] == pytest.approx(weights)
    names = [prompts.request(i, vocabulary, 0).entities[0].name for i in range(1000)]
    assert names.count("bus") / 1000 == pytest.approx(0.75 / (0.75 + 0.25), abs=0.01)


def test_results_that_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results none.json: give a results.json"):
        weak_classes("none.json")
    path = tmp_path / "results.json"
    for content in ("{", "[1]", '{"a": {"miou": 3}}', '{"a": {"per_class": {"car": null}}}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="holds no results: every stream must have per_class"):
            weak_classes(path)
    for scores in ({"car": 101}, {}):
        write(path, {"a": {"per_class": scores}})
        with pytest.raises(ValueError, match=r"must hold an IoU in 0..100 of one class at least"):
            weak_classes(path)


def test_results_of_another_vocabulary_are_named(tmp_path, vocabulary):
    path = write(tmp_path / "results.json", {"a": {"per_class": {"car": 50.0, "buss": 50.0}}})
    with pytest.raises(ValueError, match=f"^{re.escape(path)}: unknown class 'buss' .*: bus"):
        TemplatePrompts(weights=path).request(0, vocabulary, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weights": {"car": -1}}, "weights must be numbers >= 0, got {'car': -1}"),
        ({"weights": {"car": math.nan}}, "weights must be numbers >= 0"),
        ({"never_together": [["car"]]}, "lists of two or more classes, got [['car']]"),
        ({"objects": {2: 1}, "classes": "mixed", "weights": {"car": 2}}, "got mixed"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        TemplatePrompts(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weights": {"cart": 1}}, "unknown class 'cart'"),
        ({"weights": {"car": 1, "automobile": 1}}, "different ones, got car, automobile"),
        ({"never_together": [["car", "carr"]]}, "unknown class 'carr'"),
        ({"classes": ["car", "bus"], "weights": {"car": 0}}, "of positive weight, got 1"),
    ],
)
def test_words_that_the_vocabulary_does_not_know(arguments, words, vocabulary):
    with pytest.raises(ValueError, match=words):
        TemplatePrompts(**arguments).request(0, vocabulary, 0)


def test_describe_tells_prompts_apart():
    assert "weights" not in TemplatePrompts().describe()
    facts = TemplatePrompts(weights={"car": 2}, never_together=[["car", "bus"]]).describe()
    assert facts["weights"] == {"car": 2} and facts["never_together"] == [["car", "bus"]]
