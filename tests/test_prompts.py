"""Prompts: balance, spans and seeds, counted over whole cycles."""

import hashlib
import json
import re
from collections import Counter
from itertools import combinations, product

import pytest

from ovseg.data.prompts import TemplatePrompts, sample_seed
from ovseg.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load("clipart", "1")


def ids_of(prompts, vocabulary, indices, seed=0):
    return [[e.class_id for e in prompts.request(i, vocabulary, seed).entities] for i in indices]


def test_pure_and_decided_by_the_seed(vocabulary):
    prompts = TemplatePrompts({1: 0.25, 2: 0.75}, "all")
    first = [prompts.request(i, vocabulary, 3) for i in range(40)]
    same = TemplatePrompts({1: 0.25, 2: 0.75}, "all")
    again = [same.request(i, vocabulary, 3) for i in range(40)]
    assert first == again
    assert [r.index for r in first] == list(range(40))
    other = [prompts.request(i, vocabulary, 4) for i in range(40)]
    assert [r.prompt for r in first] != [r.prompt for r in other]


def test_requests_are_those_of_earlier_datasets():
    digest = hashlib.sha256()
    arguments = [
        {},
        {"objects": {1: 1, 2: 3}, "classes": "all"},
        {"objects": {2: 1}, "classes": "mixed"},
        {"objects": {1: 1, 3: 1, 4: 2}, "templates": ["a photo of {objects}", "{objects}, drawn"]},
        {"objects": {1: 1, 2: 1}, "classes": ["car", "bus", "cat"], "negative_prompt": "x"},
    ]
    for name, split in (("clipart", "1"), ("voc", "zs3")):
        words = Vocabulary.load(name, split)
        for prompts in (TemplatePrompts(**given) for given in arguments):
            digest.update(json.dumps(prompts.describe()).encode())
            for index in range(60):
                digest.update(json.dumps(prompts.request(index, words, 31)).encode())
    assert digest.hexdigest()[:16] == "5d1698fa7c6e3122"


def test_shares_are_exact_over_every_period(vocabulary):
    prompts = TemplatePrompts({"1": 0.25, "2": 0.75}, "all")
    counts = [len(ids) for ids in ids_of(prompts, vocabulary, range(400))]
    for start in range(0, 400, 4):
        assert Counter(counts[start : start + 4]) == {1: 1, 2: 3}
    assert len({tuple(counts[start : start + 4]) for start in range(0, 400, 4)}) == 4


def test_one_object_is_balanced_in_every_round(vocabulary):
    drawn = [ids[0] for ids in ids_of(TemplatePrompts({1: 1}, "seen"), vocabulary, range(45))]
    rounds = [drawn[start : start + 15] for start in (0, 15, 30)]
    assert all(sorted(part) == sorted(vocabulary.seen) for part in rounds)
    assert rounds[0] != rounds[1]


@pytest.mark.parametrize("classes, size", [("all", 20), ("seen", 15), ("unseen", 5)])
def test_pairs_and_classes_are_balanced(vocabulary, classes, size):
    total = size * (size - 1) // 2
    pairs = ids_of(TemplatePrompts({2: 1}, classes), vocabulary, range(3 * total))
    expected = {frozenset(pair) for pair in combinations(vocabulary.select(classes), 2)}
    for start in (0, total, 2 * total):
        part = pairs[start : start + total]
        assert len(part) == len(expected) and {frozenset(pair) for pair in part} == expected
    for start in range(0, total, size // 2):  # a round: no class twice
        assert max(Counter(sum(pairs[start : start + size // 2], [])).values()) == 1
    ascending = sum(a < b for a, b in pairs) / len(pairs)
    assert 0.25 < ascending < 0.75


@pytest.mark.parametrize("split", ["1", "2", "3"])
def test_mixed_pairs(split):
    vocabulary = Vocabulary.load("clipart", split)
    pairs = ids_of(TemplatePrompts({2: 1}, "mixed"), vocabulary, range(75), seed=1)
    expected = {frozenset(pair) for pair in product(vocabulary.seen, vocabulary.unseen)}
    assert {frozenset(pair) for pair in pairs} == expected
    for start in range(0, 75, 15):
        counts = Counter(sum(pairs[start : start + 15], []))
        assert all(counts[c] == 1 for c in vocabulary.seen)
        assert all(counts[c] == 3 for c in vocabulary.unseen)


@pytest.mark.parametrize("classes", ["seen", "unseen", "all", "mixed", ["cat", "bus"]])
def test_the_classes_that_are_named_are_known(vocabulary, classes):
    prompts = TemplatePrompts({2: 1}, classes)
    found = {i for ids in ids_of(prompts, vocabulary, range(60)) for i in ids}
    assert prompts.named_classes(vocabulary) == found


def test_three_and_four_objects(vocabulary):
    prompts = TemplatePrompts({3: 1, 4: 1}, "seen")
    groups = ids_of(prompts, vocabulary, range(200))
    assert Counter(map(len, groups)) == {3: 100, 4: 100}
    assert all(len(set(group)) == len(group) for group in groups)
    threes = Counter(sum((group for group in groups if len(group) == 3), []))
    assert set(threes.values()) == {20}  # 100 groups of 3 over 15 classes


def test_words_articles_and_spans():
    vocabulary = Vocabulary.load("clipart", "1")
    prompts = TemplatePrompts({2: 1, 3: 1}, "all", ["a photo of {objects}", "{objects}, drawn"])
    seen = set()
    for index in range(300):
        request = prompts.request(index, vocabulary, 0)
        names = [f"{vocabulary[e.class_id].article} {e.name}" for e in request.entities]
        words = f"{', '.join(names[:-1])} and {names[-1]}"
        assert request.prompt in (f"a photo of {words}", f"{words}, drawn")
        seen.add(request.prompt[-5:] == "drawn")
        for entity in request.entities:
            assert request.prompt[slice(*entity.span)] == entity.name
            assert entity.name == vocabulary[entity.class_id].name
    assert seen == {True, False}
    assert "an apple" in " ".join(prompts.request(i, vocabulary, 0).prompt for i in range(40))


def test_names_of_two_words():
    vocabulary = Vocabulary.load("voc", "zs3")
    prompts = TemplatePrompts({1: 1}, "all")
    requests = [prompts.request(i, vocabulary, 0) for i in range(20)]
    (plant,) = (r for r in requests if "plant" in r.prompt)
    assert plant.prompt == "a photo of a potted plant"
    assert plant.entities[0].span == (13, 25)


def test_seeds_are_distinct_and_of_32_bits():
    seeds = {sample_seed(seed, i) for seed in (0, 1) for i in range(20_000)}
    assert len(seeds) == 40_000
    assert 0 <= min(seeds) and max(seeds) < 2**32


def test_seed_mixer_against_the_published_constant(monkeypatch):
    import numpy as np

    class Zero:
        def __init__(self, seed):
            pass

        def generate_state(self, count):
            return [0]

    monkeypatch.setattr(np.random, "SeedSequence", Zero)
    assert sample_seed(0, 0) == 0
    assert sample_seed(0, 1) == 0x514E28B7  # MurmurHash3 fmix32(1)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"objects": {0: 1}}, "numbers >= 1"),
        ({"objects": {1: -1, 2: 2}}, "shares >= 0"),
        ({"objects": {1: 0}}, "positive sum"),
        ({"classes": "none"}, "seen, unseen, all, mixed or names"),
        ({"classes": "mixed"}, "objects must be {2: 1}"),
        ({"templates": ["a photo"]}, "needs {objects} once"),
        ({"templates": []}, "needs {objects} once"),
        ({"templates": ["{objects} in {place}"]}, "may have the places {objects}, got {place} in"),
        ({"templates": ["{objects}", "{} {objects} {x}"]}, "{objects}, got {x}, {} in ['{obj"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        TemplatePrompts(**arguments)


def test_more_objects_than_classes(vocabulary):
    with pytest.raises(ValueError, match="6 objects needs as many unseen classes.*has 5"):
        TemplatePrompts({1: 1, 6: 1}, "unseen").request(0, vocabulary, 0)
    with pytest.raises(ValueError, match=">= 0"):
        TemplatePrompts().request(0, vocabulary, -1)


def test_a_list_of_classes(vocabulary):
    words = ["boat", "automobile", "key"]
    prompts = TemplatePrompts({1: 1, 2: 1}, words)
    ids = {vocabulary.id_of(word) for word in words}
    found = [prompts.request(i, vocabulary, 3).entities for i in range(24)]
    assert {entity.class_id for entities in found for entity in entities} == ids
    with pytest.raises(ValueError, match="4 objects needs as many given classes.*has 3"):
        TemplatePrompts({4: 1}, words).request(0, vocabulary, 0)
    with pytest.raises(ValueError, match="must be different ones, got car, automobile"):
        TemplatePrompts({1: 1}, ["car", "automobile"]).request(0, vocabulary, 0)


def test_describe_tells_prompts_apart():
    one, other = TemplatePrompts({1: 1, 2: 3}), TemplatePrompts({1: 1})
    assert one.describe()["objects"] == {"1": "1/4", "2": "3/4"}
    assert one.describe() != other.describe()
