"""Which prompts are asked of a backbone, as a pure function of the index."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from textwrap import shorten
from typing import NamedTuple

import numpy as np

from ovseg.backbones.base import DiffusionBackbone
from ovseg.data.prompts_choice import BalancedChoice, Classes, raw_draws
from ovseg.data.prompts_weighted import WeightedChoice, weak_classes
from ovseg.structures import Entity, Request
from ovseg.vocabulary import Vocabulary

PLACE = re.compile(r"\{[^{}]*\}")
"""A place in a template that a word is put in."""


class Prompts(ABC):
    """Make requests. Subclasses are pure: the same arguments always give the same request.

    Attributes:
        costly: Whether a request takes more than a moment to make.
    """

    costly = False

    @abstractmethod
    def request(self, index: int, vocabulary: Vocabulary, seed: int) -> Request:
        """Return request number ``index`` (>= 0) of the endless list that ``seed`` decides."""

    @abstractmethod
    def describe(self) -> dict:
        """Return JSON-ready facts for `dataset.json` that tell these prompts from others."""

    def named_classes(self, vocabulary: Vocabulary) -> set[int] | None:
        """Return the ids of the classes that requests name sooner or later; None: not known.

        A quota waits for these; where they are not known, for those that were asked for so far.
        """
        return None

    def check(self, backbone: DiffusionBackbone, vocabulary: Vocabulary) -> None:  # noqa: B027
        """Refuse what a backbone cannot be told, where that is known before it is asked.

        Raises:
            ValueError: If there is something.
        """

    def counts(self) -> dict[str, int]:
        """Return how many of the requests made so far came about in which way; {}: all in one."""
        return {}


def refuse_undrawable(
    backbone: DiffusionBackbone, requests: Iterable[Request], what: str, advice: str = ""
) -> None:
    """Refuse requests that a backbone would refuse when it is to sample them.

    Args:
        backbone: Is asked for each, and samples none.
        requests: All are looked at.
        what: They are, in words, with their number.
        advice: Follows the reason.

    Raises:
        ValueError: If there are some; says how many, and of the first what is wrong with it.
    """
    refused = []
    for request in requests:
        try:
            backbone.check_request(request)
        except ValueError as error:
            refused.append((shorten(request.prompt, 60, placeholder=" ..."), error))
    if refused:
        prompt, error = refused[0]
        raise ValueError(
            f"{len(refused)} of {what} cannot be drawn by this model, first {prompt!r}: "
            f"{error}{advice}"
        )


class TemplatePrompts(Prompts):
    """Prompts such as "a photo of a house and a fish", their classes balanced or weighted.

    `BalancedChoice` says which classes stand together: over consecutive indices numbers of objects,
    classes and pairs are exactly balanced. With weights or never_together `WeightedChoice` does.
    The order inside a prompt is shuffled by the seed; a class never occurs twice in a prompt.

    Args:
        objects: ``{number of objects: share}``; shares are divided by their sum. Default: one and
            two objects, half each.
        classes: "seen", "unseen", "all", a list of names, or "mixed": two objects, one seen and
            one unseen.
        templates: Prompts with the place ``{objects}``; one is drawn per sample.
        negative_prompt: Text of the unconditional branch.
        weights: ``{class: weight}``, a class that is not named has 1; or the path of a
            ``results.json`` of `ovseg test`: the lower the IoU of a class, the more of it.
        never_together: Lists of classes no two of which stand in one prompt.

    Attributes:
        known_places: What a template may have in braces; a subclass that fills more says so.

    Raises:
        FileNotFoundError: If there are no results.
        ValueError: If an argument is not as described.
    """

    known_places = ("{objects}",)

    def __init__(
        self,
        objects: dict[int, float] | None = None,
        classes: Classes = "seen",
        templates: Sequence[str] = ("a photo of {objects}",),
        negative_prompt: str = "",
        weights: dict[str, float] | str | None = None,
        never_together: list[list[str]] | None = None,
    ) -> None:
        objects = objects or {1: 0.5, 2: 0.5}
        if weights or never_together:
            source = weights if isinstance(weights, str) else "weights"
            weights = weak_classes(weights) if isinstance(weights, str) else weights or {}
            self.choice = WeightedChoice(objects, classes, weights, never_together or [], source)
        else:
            self.choice = BalancedChoice(objects, classes)
        self.templates = tuple(templates)
        self.negative_prompt = negative_prompt
        if not self.templates or any(t.count("{objects}") != 1 for t in self.templates):
            raise ValueError(f"every template needs {{objects}} once, got {list(self.templates)}")
        check_places("templates", self.templates, self.known_places)

    def request(self, index: int, vocabulary: Vocabulary, seed: int) -> Request:
        """Return request number ``index``.

        Raises:
            ValueError: If a prompt needs more classes than there are.
        """
        ids = self.choice.ids(index, vocabulary, seed)
        draws = raw_draws(len(ids) + 1, seed, 0, index)
        ids = [ids[i] for i in np.argsort(draws[1:], kind="stable")]
        template = self.templates[int(draws[0] % np.uint64(len(self.templates)))]
        prompt, entities = self.write(template, ids, vocabulary, seed, index)
        return Request(index, sample_seed(seed, index), prompt, entities, self.negative_prompt)

    def named_classes(self, vocabulary: Vocabulary) -> set[int]:
        """Return the classes that are chosen from."""
        return self.choice.classes_of(vocabulary)

    def write(
        self, template: str, ids: Sequence[int], vocabulary: Vocabulary, seed: int, index: int
    ) -> tuple[str, tuple[Entity, ...]]:
        """Return the prompt of a template and classes; another wording is a subclass."""
        return fill(template, ids, vocabulary)

    def describe(self) -> dict:
        """Return the arguments."""
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            **self.choice.describe(),
            "templates": list(self.templates),
            "negative_prompt": self.negative_prompt,
        }


def sample_seed(seed: int, index: int) -> int:
    """Return the 32-bit seed of one sample: no two samples of a stream share it.

    32 bits because torch's CPU generator looks at no others; a bijection of the index (the
    finaliser of MurmurHash3) so that none occurs twice.
    """
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])
    value = (start + index) & 0xFFFFFFFF
    for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        value ^= value >> shift
        value = value * factor & 0xFFFFFFFF
    return value ^ value >> 16


def check_places(what: str, texts: Sequence[str], known: Sequence[str]) -> None:
    """Refuse texts with places that nothing is put in: the braces would stand in the prompts.

    Raises:
        ValueError: If there is one.
    """
    found = {place for text in texts for place in PLACE.findall(text)}
    if unknown := sorted(found.difference(known)):
        raise ValueError(
            f"{what} may have the places {' and '.join(known)}, got {', '.join(unknown)} in "
            f"{list(texts)}"
        )


class Phrase(NamedTuple):
    """The words of one object.

    Attributes:
        class_id: Its class.
        before: Article and adjective, e.g. "a red ".
        name: The name, e.g. "car".
        after: What follows the name.
    """

    class_id: int
    before: str
    name: str
    after: str = ""


def fill(
    template: str, ids: Sequence[int], vocabulary: Vocabulary
) -> tuple[str, tuple[Entity, ...]]:
    """Put the names in their place: "a house", "a house and a fish", "a house, a fish and ..."."""
    entries = [vocabulary[class_id] for class_id in ids]
    return put(template, [Phrase(e.id, f"{e.article} ", e.name) for e in entries])


def put(template: str, phrases: Sequence[Phrase]) -> tuple[str, tuple[Entity, ...]]:
    """Put phrases in the place ``{objects}``; an entity's span is that of its name alone."""
    prompt, end = template.split("{objects}")
    entities = []
    for place, phrase in enumerate(phrases):
        if place:
            prompt += " and " if place == len(phrases) - 1 else ", "
        prompt += phrase.before
        span = (len(prompt), len(prompt) + len(phrase.name))
        entities.append(Entity(phrase.class_id, phrase.name, span))
        prompt += phrase.name + phrase.after
    return prompt + end, tuple(entities)
