"""Words: those that name a class in a text, and lists of others that make prompts rich."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ovseg.structures import Entity
from ovseg.vocabulary import Vocabulary

SHIPPED = files("ovseg") / "data" / "words"
WORD = re.compile(r"\w+")
GAP = re.compile(r"[\s'’-]+")
"""What may stand between the words of one name: "school bus", "school-bus"."""
PLURALS = ((r"\b(wo)?man$", r"\1men"), (r"(s|x|z|ch|sh)$", r"\1es"), (r"([^aeiou])y$", r"\1ies"))


class _Names(NamedTuple):
    """Class ids by the words of each name, case folded, and the most words of a name."""

    ids: dict[tuple[str, ...], int]
    longest: int


def find_names(text: str, vocabulary: Vocabulary) -> list[Entity]:
    """Find the vocabulary's names in a text, the longest at each place, in the order of the text.

    Names, synonyms and the plurals of both count, as whole words and in any case.

    Args:
        text: In Unicode's composed form (NFC).
        vocabulary: Its words.

    Returns:
        What was found, a class as often as it stands there; ``name`` is as the text has it.
    """
    table, words = _names(vocabulary), list(WORD.finditer(text))
    found, place = [], 0
    while place < len(words):
        end = _longest(text, words, place, table)
        if end > place:
            start, stop = words[place].start(), words[end - 1].end()
            class_id = table.ids[_key(text[start:stop])]
            found.append(Entity(class_id, text[start:stop], (start, stop)))
        place = max(end, place + 1)
    return found


def first_names(text: str, vocabulary: Vocabulary) -> dict[int, Entity]:
    """Find the first name of each class, in the order of the text; see `find_names`."""
    first: dict[int, Entity] = {}
    for entity in find_names(text, vocabulary):
        first.setdefault(entity.class_id, entity)
    return first


def names_only(text: str, allowed: Iterable[int], vocabulary: Vocabulary) -> bool:
    """Say whether all classes that a text names are allowed."""
    return {entity.class_id for entity in find_names(text, vocabulary)} <= set(allowed)


@lru_cache(maxsize=64)
def nameless(texts: tuple[str, ...], vocabulary: Vocabulary) -> tuple[str, ...]:
    """Return those texts that name no class."""
    return tuple(text for text in texts if names_only(text, (), vocabulary))


def article(word: str) -> str:
    """Return "a" or "an", by the first letter."""
    return "an" if word[:1].lower() in tuple("aeiou") else "a"


def composed(text: str) -> str:
    """Return a text in Unicode's composed form, in which an accented letter is one character."""
    return unicodedata.normalize("NFC", text)


def read_words(key: str, source: list[str] | dict[str, str] | str | None) -> Any:
    """Return words that are given, or those of a YAML file.

    Args:
        key: "adjectives", "places" (lists of texts) or "definitions" (a text of each class).
        source: The words themselves, a shipped file's name ("english", "clipart"), a file's path,
            or None for no words. A file maps one or more of the keys to words.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no such words.
    """
    kind = dict if key == "definitions" else list
    if source is None:
        return kind()
    words = _load(key, source) if isinstance(source, str) else source
    texts = list(words.values()) if isinstance(words, dict) else words
    if not isinstance(words, kind) or not texts or not all(_is_text(text) for text in texts):
        raise ValueError(
            f"{key} must be a {'mapping of classes to' if kind is dict else 'list of'} texts "
            f"without braces, got {words!r} of {source!r}"
        )
    return words


def is_shipped(source: object) -> bool:
    """Say whether words are a shipped file's, whose classes are those of many vocabularies."""
    return isinstance(source, str) and (SHIPPED / f"{source}.yaml").is_file()


def _load(key: str, source: str) -> Any:
    path = SHIPPED / f"{source}.yaml" if is_shipped(source) else Path(source)
    if not path.is_file():
        names = sorted(p.name.removesuffix(".yaml") for p in SHIPPED.iterdir())
        raise FileNotFoundError(
            f"no words {source!r}: give one of {', '.join(names)}, a YAML file, or the {key}"
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is no YAML: {error}") from None
    if not isinstance(data, dict) or key not in data:
        raise ValueError(f"{source} has no {key}: a file of words maps it to them")
    return data[key]


def _is_text(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip()) and not set("{}") & set(text)


@lru_cache(maxsize=8)
def _names(vocabulary: Vocabulary) -> _Names:
    """Return all names; where two classes share one, a name goes before plurals and synonyms."""
    classes = vocabulary.classes
    layers = [
        [(plural(word), c.id) for c in classes for word in c.synonyms],
        [(word, c.id) for c in classes for word in c.synonyms],
        [(word, c.id) for c in classes for word in (c.plural, plural(c.name))],
        [(c.name, c.id) for c in classes],
    ]
    ids = {_key(word): class_id for layer in layers for word, class_id in layer}
    return _Names(ids, max(map(len, ids)))


def plural(word: str) -> str:
    """Return the regular plural of a word."""
    for ending, instead in PLURALS:
        changed, count = re.subn(ending, instead, word)
        if count:
            return changed
    return f"{word}s"


def _key(name: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in WORD.findall(composed(name)))


def _longest(text: str, words: list[re.Match], place: int, table: _Names) -> int:
    """Return where the longest name that starts at a word ends; the same place if none does."""
    best, key = place, ()
    for end in range(place + 1, min(place + table.longest, len(words)) + 1):
        if end > place + 1 and not GAP.fullmatch(
            text, words[end - 2].end(), words[end - 1].start()
        ):
            break
        key = (*key, words[end - 1].group().casefold())
        best = end if key in table.ids else best
    return best
