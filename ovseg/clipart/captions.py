"""Captions of drawn scenes: the language that the clip-art world's models learn."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from ovseg.clipart.scenes import COLORS, Scene, Thing, nouns, rng
from ovseg.clipart.scenes import compose as _compose
from ovseg.vocabulary import Vocabulary

PREFIXES = ("a photo of", "a photograph of", "a picture of")
COUNTS = {2: "two", 3: "three", 4: "four"}
BENCHMARK_SHARE = 3.5  # how much more often a noun of the vocabulary is drawn than another one


@lru_cache(maxsize=1)
def _frequencies() -> tuple[list[str], np.ndarray]:
    names, known = list(nouns()), set(Vocabulary.load("clipart").names)
    weight = np.array([BENCHMARK_SHARE if n in known else 1.0 for n in names])
    return names, weight / weight.sum()


def draw_nouns(r: np.random.Generator, count: int) -> list[str]:
    """Draw distinct nouns of the whole language, those of the vocabulary more often."""
    names, share = _frequencies()
    return [names[i] for i in r.choice(len(names), size=count, replace=False, p=share)]


def draw_scene(seed: int, index: int) -> Scene:
    """Draw a scene of the training distribution: one to four objects, sometimes all the same."""
    r = rng(seed, index)
    count = int(r.choice([1, 2, 3, 4], p=[0.32, 0.62, 0.03, 0.03]))
    names = draw_nouns(r, count)
    if count > 1 and r.random() < 0.05:
        names = names[:1] * count
    return _compose(r, names)


def _size(thing: Thing, scene: Scene) -> str:
    low, high = (0.34, 0.38) if len(scene.things) == 1 else (0.245, 0.275)
    return "small" if thing.half < low else "big" if thing.half > high else ""


def _word(r: np.random.Generator, thing: Thing) -> tuple[str, str]:
    """Return the noun's article and word: mostly its name, sometimes a synonym or hypernym."""
    noun = nouns()[thing.noun]
    draw = r.random()
    if draw < 0.06 and " " not in noun.family:
        word = noun.family
    elif draw < 0.18:
        word = noun.synonyms[r.integers(len(noun.synonyms))]
    else:
        return noun.article, noun.name
    return ("an" if word[0] in "aeiou" else "a"), word


def _phrase(r: np.random.Generator, thing: Thing, scene: Scene, rich: bool) -> str:
    article, word = _word(r, thing)
    adjectives = []
    if rich and r.random() < 0.35 and _size(thing, scene):
        adjectives.append(_size(thing, scene))
    if rich and r.random() < 0.6:
        adjectives.append(thing.color)
    if adjectives:
        article = "an" if adjectives[0][0] in "aeiou" else "a"
    return " ".join([article, *adjectives, word])


def _relation(a: Thing, b: Thing) -> str | None:
    dx, dy = b.x - a.x, b.y - a.y
    if abs(dx) > 1.5 * abs(dy):
        return "to the left of" if dx > 0 else "to the right of"
    if abs(dy) > 1.5 * abs(dx):
        return "above" if dy > 0 else "below"
    return None


def _body(r: np.random.Generator, scene: Scene, rich: bool) -> str:
    things = [scene.things[i] for i in r.permutation(len(scene.things))]
    if len(things) > 1 and len({t.noun for t in things}) == 1:
        return f"{COUNTS[len(things)]} {nouns()[things[0].noun].plural}"
    phrases = [_phrase(r, t, scene, rich and len(things) < 3) for t in things]
    relation = _relation(*things) if len(things) == 2 else None
    if rich and relation and r.random() < 0.5:
        return f"{phrases[0]} {relation} {phrases[1]}"
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def caption(r: np.random.Generator, scene: Scene) -> str:
    """Write one caption; the order of the objects tells nothing about position or size.

    Half of them are plain ("a photo of a house and a fish"), half may name colours, sizes,
    relations and the background.
    """
    rich = r.random() < 0.5
    text = f"{PREFIXES[r.integers(3)]} {_body(r, scene, rich)}"
    if rich and r.random() < 0.4:
        word = scene.background if r.random() < 0.7 else scene.texture
        text += f" on {'an' if word[0] in 'aeiou' else 'a'} {word} background"
    return text


def corpus(seed: int, count: int) -> Iterator[str]:
    """Yield captions of ``count`` scenes, and every word of the language at least once."""
    for noun in nouns().values():
        for word in (noun.name, noun.plural, noun.family, *noun.synonyms):
            yield f"{PREFIXES[0]} a {word}"
    for color in COLORS:
        yield f"{PREFIXES[1]} a big {color} and small {color}"
    for index in range(count):
        yield caption(rng(seed + 1, index), draw_scene(seed, index))
