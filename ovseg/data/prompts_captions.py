"""Captions that people or models wrote, as prompts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ovseg.backbones.base import DiffusionBackbone
from ovseg.data.prompts import Prompts, refuse_undrawable, sample_seed
from ovseg.data.prompts_choice import permutation
from ovseg.data.prompts_words import composed, first_names
from ovseg.structures import Entity, Request
from ovseg.vocabulary import Vocabulary


class Caption(NamedTuple):
    """A caption with the names in it, the first of each class."""

    text: str
    entities: tuple[Entity, ...]


class CaptionPrompts(Prompts):
    """Captions of a file, with the names of the vocabulary found in them.

    Names, synonyms and the plurals of both are found as whole words in any case, the longest first.
    A class that is named twice is one entity, by its first name. Captions that are left out: those
    without a name, those that name a class which is not allowed, those that are too long. The
    others come in an order that the seed shuffles, all of them once before any comes again.

    Args:
        file: A text file, one caption per line; or, if its name ends in ".jsonl", one JSON object
            per line.
        key: Field of the caption in these objects.
        classes: Which classes a caption may name: "seen", "unseen", "all", or a list of names.
        max_words: Most words of a caption. A text encoder has a limit, 77 tokens for CLIP, and a
            backbone refuses longer prompts.
        negative_prompt: Text of the unconditional branch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no caption, a line is no JSON object with one, or max_words is not
            positive.
    """

    def __init__(
        self,
        file: str,
        key: str = "caption",
        classes: Literal["seen", "unseen", "all"] | list[str] = "seen",
        max_words: int = 50,
        negative_prompt: str = "",
    ) -> None:
        if max_words < 1:
            raise ValueError(f"max_words must be >= 1, got {max_words}")
        self.file, self.classes, self.max_words = Path(file), classes, max_words
        self.negative_prompt = negative_prompt
        if not self.file.is_file():
            raise FileNotFoundError(f"no captions {file}: give a text file or a .jsonl file")
        data = self.file.read_bytes()
        self.digest = hashlib.sha256(data).hexdigest()[:16]
        self.key = key if self.file.suffix.lower() == ".jsonl" else None
        self.captions = tuple(_read(data, self.file, self.key))
        if not self.captions:
            raise ValueError(f"{file} holds no captions: give a file with one per line")
        self._bound: tuple[Vocabulary, list[Caption], Counter] | None = None

    def request(self, index: int, vocabulary: Vocabulary, seed: int) -> Request:
        """Return request number ``index``.

        Raises:
            ValueError: If no caption can be used, or index or seed is negative.
        """
        if index < 0 or seed < 0:
            raise ValueError(f"index and seed must be >= 0, got {index} and {seed}")
        usable = self._usable(vocabulary)
        epoch, place = divmod(index, len(usable))
        caption = usable[_order(len(usable), seed, epoch)[place]]
        own = sample_seed(seed, index)
        return Request(index, own, caption.text, caption.entities, self.negative_prompt)

    def named_classes(self, vocabulary: Vocabulary) -> set[int]:
        """Return the classes that the captions name."""
        captions = self._usable(vocabulary)
        return {entity.class_id for caption in captions for entity in caption.entities}

    def check(self, backbone: DiffusionBackbone, vocabulary: Vocabulary) -> None:
        """Refuse captions that the backbone cannot be told.

        Raises:
            ValueError: If there are some; says of the first what is wrong with it.
        """
        captions = self._usable(vocabulary)
        requests = (Request(0, 0, c.text, c.entities, self.negative_prompt) for c in captions)
        what = f"{len(captions)} captions of {self.file}"
        refuse_undrawable(backbone, requests, what, f", or lower max_words, {self.max_words}")

    def describe(self) -> dict:
        """Return the arguments, the file's digest, and how many captions are used and left out.

        Raises:
            ValueError: If no request was made: its vocabulary decides what is left out.
        """
        if self._bound is None:
            raise ValueError("make a request first: a vocabulary decides which captions are used")
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "file": self.file.name,
            "digest": self.digest,
            "key": self.key,
            "classes": self.classes,
            "max_words": self.max_words,
            "negative_prompt": self.negative_prompt,
            "captions": dict(self._bound[2]),
        }

    def _usable(self, vocabulary: Vocabulary) -> list[Caption]:
        if self._bound is None or self._bound[0] is not vocabulary:
            self._bound = (vocabulary, *self._find(vocabulary))
        return self._bound[1]

    def _find(self, vocabulary: Vocabulary) -> tuple[list[Caption], Counter]:
        """Return the captions that can be used, and how many there are of each kind."""
        allowed = set(vocabulary.select(self.classes))
        usable, counts = [], Counter(used=0, without_name=0, other_class=0, too_long=0)
        for text in self.captions:
            first = first_names(text, vocabulary)
            if not first:
                counts["without_name"] += 1
            elif not first.keys() <= allowed:
                counts["other_class"] += 1
            elif len(text.split()) > self.max_words:
                counts["too_long"] += 1
            else:
                counts["used"] += 1
                usable.append(Caption(text, tuple(first.values())))
        if not usable:
            raise ValueError(
                f"no caption of {self.file} can be used for the {vocabulary.name!r} classes asked "
                f"for: {counts['without_name']} name no class, {counts['other_class']} name "
                f"another one, {counts['too_long']} have more than {self.max_words} words"
            )
        return usable, counts


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(count, seed, 30, epoch)


def _read(data: bytes, path: Path, key: str | None) -> Iterator[str]:
    """Yield the captions of a file, in Unicode's composed form; empty lines are none.

    Args:
        data: What stands in it.
        path: Its path, for messages.
        key: Field of the caption in each line's object; None if the line is the caption.
    """
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error.reason}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            text = line if key is None else _field(line, key, f"{path}, line {number}")
            yield " ".join(composed(text).split())


def _field(line: str, key: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get(key), str):
        raise ValueError(f"{where} has no text {key!r}: one JSON object per line, or give `key`")
    return value[key]
