"""Classes, the words for them, and which of them are seen."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

EVERY = "*"
"""Stands for every class there is: of weights that do not say what they were trained on."""

MOST = 254
"""Classes that a label map of one byte can tell apart: 0 is background, 255 is ignore."""


@dataclass(frozen=True)
class VocabularyClass:
    """One class.

    Attributes:
        id: >= 1; 0 is background.
        key: Identifier used in data sets, e.g. "pottedplant".
        name: Words used in prompts, e.g. "potted plant".
        article: "a", "an", or "some" for what is not counted.
        plural: Words for several of it.
        synonyms: Other words for it.
        color: RGB of the palette.
    """

    id: int
    key: str
    name: str
    article: str
    plural: str
    synonyms: tuple[str, ...]
    color: tuple[int, int, int]


class Vocabulary:
    """The classes of a data set and one of its splits into seen and unseen.

    `splits` names all of them. Id 0 is background, ids 1..N are the classes in file order, 255 is
    ignore.
    """

    def __init__(self, name: str, classes: Sequence[VocabularyClass], splits: dict, split: str):
        self.name = name
        self.classes = tuple(classes)
        self.split, self.splits = str(split), tuple(splits)
        others = {w.lower(): c.id for c in self.classes for w in (*c.synonyms, c.plural)}
        self._by_word = others | {w.lower(): c.id for c in self.classes for w in (c.key, c.name)}
        if self.split not in splits:
            raise ValueError(
                f"vocabulary {name!r} has no split {self.split!r}; choose one of "
                f"{', '.join(splits)}"
            )
        self.unseen = tuple(sorted({self.id_of(key) for key in splits[self.split]}))
        self.seen = tuple(c.id for c in self.classes if c.id not in self.unseen)

    @classmethod
    def load(cls, source: str | Path, split: str = "1") -> Vocabulary:
        """Load a shipped vocabulary by name ("clipart", "voc") or any by the path of its YAML.

        Raises:
            ValueError: If there is no such vocabulary, split, or the file is not one.
        """
        shipped = files("ovseg") / "vocabularies"
        path = shipped / f"{source}.yaml"
        if not path.is_file():
            path = Path(source)
        if not path.is_file():
            names = sorted(p.name[:-5] for p in shipped.iterdir() if p.name.endswith(".yaml"))
            raise ValueError(
                f"no vocabulary {str(source)!r}: give one of {', '.join(names)} or a YAML file's "
                "path"
            )
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            why = f"line {mark.line + 1}: {error.problem}" if mark else " ".join(str(error).split())
            raise ValueError(
                f"vocabulary {str(source)!r} is no YAML: {why}; mend the file, see the shipped ones"
            ) from None
        return cls._from_dict(data, str(source), split)

    @classmethod
    def _from_dict(cls, data: Any, source: str, split: str) -> Vocabulary:
        where = f"vocabulary {source!r}"
        try:
            classes = [_class(where, *item) for item in enumerate(data["classes"], start=1)]
            splits = {str(key): list(value) for key, value in data["splits"].items()}
            name = data["name"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{where} needs name, classes (each with key and color) and splits: "
                f"{type(error).__name__}: {error}"
            ) from None
        _check_values(where, data, FIELDS)
        _check_classes(where, classes)
        return cls(name, classes, splits, split)

    @property
    def num_classes(self) -> int:
        """Number of classes with background, N + 1."""
        return len(self.classes) + 1

    @property
    def names(self) -> tuple[str, ...]:
        """Prompt names by id, "background" first."""
        return ("background", *(c.name for c in self.classes))

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """RGB colours by id, black first."""
        return [(0, 0, 0), *(c.color for c in self.classes)]

    @property
    def digest(self) -> str:
        """Hex digest of ids, keys and names: label maps with the same digest mean the same."""
        return _digest([(c.id, c.key, c.name) for c in self.classes])

    @property
    def words_digest(self) -> str:
        """Hex digest of everything that prompts may be made of: colours are left out."""
        words = [(c.id, c.key, c.name, c.article, c.plural, c.synonyms) for c in self.classes]
        return _digest(words)

    def __getitem__(self, class_id: int) -> VocabularyClass:
        if not 1 <= class_id <= len(self.classes):
            raise ValueError(
                f"class id {class_id} is outside 1..{len(self.classes)} of {self.name!r}"
            )
        return self.classes[class_id - 1]

    def id_of(self, word: str) -> int:
        """Return the class id of a name, key, plural or synonym.

        Raises:
            ValueError: If the word is unknown; names the nearest ones.
        """
        found = self._by_word.get(str(word).lower())
        if found is None:
            near = difflib.get_close_matches(str(word).lower(), self._by_word, n=3, cutoff=0.5)
            hint = (
                f"; nearest: {', '.join(near)}" if near else f"; it has {', '.join(self.names[1:])}"
            )
            raise ValueError(f"unknown class {word!r} in vocabulary {self.name!r}{hint}")
        return found

    def select(self, which: str | Sequence[str]) -> tuple[int, ...]:
        """Return class ids of "seen", "unseen", "all", or of a list of names.

        Raises:
            ValueError: If ``which`` is none of them, or a class occurs twice.
        """
        if not isinstance(which, str):
            ids = tuple(self.id_of(name) for name in which)
            if len(set(ids)) < len(ids):
                raise ValueError(f"classes must be different ones, got {', '.join(which)}")
            return ids
        groups = {
            "seen": self.seen,
            "unseen": self.unseen,
            "all": tuple(c.id for c in self.classes),
        }
        if which not in groups:
            raise ValueError(f"classes must be one of {', '.join(groups)}, got {which!r}")
        return groups[which]

    def matched(self, labels: Sequence[str]) -> list[int]:
        """Return the class id that each label of a model or a dataset names, 0 if none.

        A label may be several words for one thing, "sofa, couch"; names and keys go before
        synonyms and plurals.
        """
        words = {_plain(w): c.id for c in self.classes for w in (*c.synonyms, c.plural)}
        words |= {_plain(w): c.id for c in self.classes for w in (c.key, c.name)}
        parts = ([_plain(part) for part in re.split("[,;]", label)] for label in labels)
        return [next((words[part] for part in some if part in words), 0) for some in parts]

    def taught(self, names: Collection[str]) -> set[int]:
        """Return the ids of the classes that something was trained with, by the names it gives."""
        if EVERY in names:
            return {c.id for c in self.classes}
        return set(self.matched(sorted(names))) - {0}


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _name(value: Any) -> bool:
    return _text(value) and _plain(value) != "background"


def _key(value: Any) -> bool:
    return _name(value) and not {"/", "\\"} & set(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _color(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(type(level) is int and 0 <= level <= 255 for level in value)


def _splits(value: Any) -> bool:
    return all(isinstance(keys, list) for keys in value.values())


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("text", _text),
    "splits": ("lists of unseen classes by the split's name", _splits),
}
"""What a file holds besides its classes, in words and as a test."""

CLASS_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "key": ("text without / and \\, other than background", _key),
    "name": ("text, other than background", _name),
    "article": ("text", _text),
    "plural": ("text", _text),
    "synonyms": ("a list of texts", _texts),
    "color": ("three whole numbers in 0..255", _color),
}
"""What it holds of a class."""


def _check_values(where: str, values: Mapping[str, Any], fields: Mapping[str, tuple]) -> None:
    """Check those values that are given.

    Raises:
        ValueError: If one is none that it could be.
    """
    for key, (wanted, fits) in fields.items():
        if key in values and not fits(values[key]):
            raise ValueError(f"{where}: {key} must be {wanted}, got {values[key]!r}")


def _class(where: str, number: int, entry: dict) -> VocabularyClass:
    """Read a class of a file.

    Raises:
        ValueError: If something of it is none that it could be.
    """
    key, color = entry["key"], entry["color"]
    _check_values(f"{where}, class {number} ({key!r})", entry, CLASS_FIELDS)
    name = entry.get("name", key)
    article, plural = entry.get("article", "a"), entry.get("plural", f"{name}s")
    synonyms = tuple(entry.get("synonyms", ()))
    return VocabularyClass(number, key, name, article, plural, synonyms, tuple(color))


def _check_classes(where: str, classes: Sequence[VocabularyClass]) -> None:
    """Refuse none, too many, and two of one key or name.

    Raises:
        ValueError: If they are so.
    """
    if not 1 <= len(classes) <= MOST:
        raise ValueError(f"{where} must have 1 to {MOST} classes, got {len(classes)}")
    first: dict[str, VocabularyClass] = {}
    for c in classes:
        for word in (c.key, c.name):
            other = first.setdefault(_plain(word), c)
            if other is not c:
                raise ValueError(
                    f"{where}, class {c.id} ({c.key!r}): key and name must be those of no other "
                    f"class, {word!r} is class {other.id}'s"
                )


def _digest(facts: list) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _plain(word: str) -> str:
    return word.replace("_", " ").strip().lower()
