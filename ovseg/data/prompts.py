"""Which prompts are asked of a backbone, as a pure function of the index."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from ovseg.structures import Entity, Request
from ovseg.vocabulary import Vocabulary


class Prompts(ABC):
    """Make requests. Subclasses are pure: the same arguments always give the same request."""

    @abstractmethod
    def request(self, index: int, vocabulary: Vocabulary, seed: int) -> Request:
        """Return request number ``index`` (>= 0) of the endless list that ``seed`` decides."""

    @abstractmethod
    def describe(self) -> dict:
        """Return JSON-ready facts for `dataset.json` that tell these prompts from others."""


class TemplatePrompts(Prompts):
    """Prompts such as "a photo of a house and a fish", exactly balanced over consecutive indices.

    The numbers of objects come in the given shares over a short period (a quarter and three
    quarters: over every 4 indices). One object: every class once per round of all classes. Two
    objects: rounds in which every class occurs once (or as often as the others), all pairs once
    per tournament of such rounds. More objects: rounds of disjoint groups. Rounds, pairs and the
    order inside a prompt are shuffled by the seed; a class never occurs twice in a prompt.

    Args:
        objects: ``{number of objects: share}``; shares are divided by their sum. Default: one and
            two objects, half each.
        classes: "seen", "unseen", "all", a list of names, or "mixed": two objects, one seen and
            one unseen.
        templates: Prompts with the place ``{objects}``; one is drawn per sample.
        negative_prompt: Text of the unconditional branch.

    Raises:
        ValueError: If the shares or the templates are not as described.
    """

    def __init__(
        self,
        objects: dict[int, float] | None = None,
        classes: Literal["seen", "unseen", "all", "mixed"] | list[str] = "seen",
        templates: Sequence[str] = ("a photo of {objects}",),
        negative_prompt: str = "",
    ) -> None:
        self.shares = _shares(objects or {1: 0.5, 2: 0.5})
        self.classes = classes
        self.templates = tuple(templates)
        self.negative_prompt = negative_prompt
        if isinstance(classes, str) and classes not in ("seen", "unseen", "all", "mixed"):
            raise ValueError(f"classes must be seen, unseen, all, mixed or names, got {classes!r}")
        if classes == "mixed" and set(self.shares) != {2}:
            raise ValueError(
                f"classes 'mixed' pairs a seen with an unseen class: objects must be {{2: 1}}, "
                f"got {dict.fromkeys(self.shares, '...')}"
            )
        if not self.templates or any(t.count("{objects}") != 1 for t in self.templates):
            raise ValueError(f"every template needs {{objects}} once, got {list(self.templates)}")
        period = math.lcm(*(share.denominator for share in self.shares.values()))
        self._kinds = [k for k, share in self.shares.items() for _ in range(int(share * period))]

    def request(self, index: int, vocabulary: Vocabulary, seed: int) -> Request:
        """Return request number ``index``.

        Raises:
            ValueError: If a prompt needs more classes than there are.
        """
        if index < 0 or seed < 0:
            raise ValueError(f"index and seed must be >= 0, got {index} and {seed}")
        count, turn = self._kind(index, seed)
        ids = self._choose(count, turn, vocabulary, seed)
        draws = _draws(count + 1, seed, 0, index)
        ids = [ids[i] for i in np.argsort(draws[1:], kind="stable")]
        template = self.templates[int(draws[0] % np.uint64(len(self.templates)))]
        prompt, entities = fill(template, ids, vocabulary)
        return Request(index, sample_seed(seed, index), prompt, entities, self.negative_prompt)

    def describe(self) -> dict:
        """Return the arguments."""
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "objects": {str(k): str(share) for k, share in self.shares.items()},
            "classes": self.classes,
            "templates": list(self.templates),
            "negative_prompt": self.negative_prompt,
        }

    def _kind(self, index: int, seed: int) -> tuple[int, int]:
        """Return the number of objects at this index, and how many such prompts came before."""
        cycle, place = divmod(index, len(self._kinds))
        order = [self._kinds[i] for i in _permutation(len(self._kinds), seed, 1, cycle)]
        count = order[place]
        return count, cycle * order.count(count) + order[:place].count(count)

    def _choose(self, count: int, turn: int, vocabulary: Vocabulary, seed: int) -> list[int]:
        if self.classes == "mixed":
            seen, unseen = vocabulary.seen, vocabulary.unseen
            if not seen or not unseen:
                raise ValueError(f"split {vocabulary.split!r} has no {'un' * bool(seen)}seen class")
            return _mixed_pair(seen, unseen, turn, seed)
        ids = vocabulary.select(self.classes)
        if max(self.shares) > len(ids):
            which = self.classes if isinstance(self.classes, str) else "given"
            raise ValueError(
                f"a prompt of {max(self.shares)} objects needs as many {which} classes; "
                f"split {vocabulary.split!r} of {vocabulary.name!r} has {len(ids)}"
            )
        return _pair(ids, turn, seed) if count == 2 else _group(ids, count, turn, seed)


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


def _shares(objects: dict[int, float]) -> dict[int, Fraction]:
    """Return shares that sum to 1, as fractions with small denominators."""
    weights = {int(count): float(share) for count, share in objects.items()}
    total = sum(weights.values())
    if min(weights) < 1 or min(weights.values()) < 0 or not 0 < total < math.inf:
        raise ValueError(f"objects maps numbers >= 1 to shares >= 0 of positive sum, got {objects}")
    parts = {k: w / total for k, w in sorted(weights.items()) if w}
    shares = {k: Fraction(part).limit_denominator(100) for k, part in parts.items()}
    if sum(shares.values()) != 1:
        raise ValueError(f"shares must be fractions of at most 100 parts, got {objects}")
    return shares


def _draws(count: int, *key: int) -> np.ndarray:
    """Return ``count`` raw uint64 of a generator of its own (numpy never changes these)."""
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)


def _permutation(count: int, *key: int) -> np.ndarray:
    return np.argsort(_draws(count, *key), kind="stable")


def _group(ids: Sequence[int], count: int, turn: int, seed: int) -> list[int]:
    """Cut shuffled classes into groups; what is left over differs from round to round."""
    cycle, place = divmod(turn, len(ids) // count)
    order = _permutation(len(ids), seed, 2, count, cycle)
    return [ids[i] for i in order[place * count : (place + 1) * count]]


def _pair(ids: Sequence[int], turn: int, seed: int) -> list[int]:
    """Return a pair of a round-robin tournament (circle method)."""
    size = len(ids)
    rounds, per_round = size - 1 + size % 2, size // 2
    cycle, place = divmod(turn, rounds * per_round)
    step, match = divmod(place, per_round)
    number = int(_permutation(rounds, seed, 3, cycle)[step])
    match = int(_permutation(per_round, seed, 4, cycle, step)[match])
    # with an odd number of classes nobody sits in the middle, and match 0 is left out
    match += size % 2
    first = (number + match) % rounds
    second = (number - match) % rounds if match else size - 1
    names = _permutation(size, seed, 5, cycle)
    return [ids[names[first]], ids[names[second]]]


def _mixed_pair(left: Sequence[int], right: Sequence[int], turn: int, seed: int) -> list[int]:
    """Return a pair of a tournament of two teams: every round has the larger team once."""
    if len(left) < len(right):
        left, right = right, left
    cycle, place = divmod(turn, len(left) * len(right))
    step, match = divmod(place, len(left))
    shift = int(_permutation(len(right), seed, 6, cycle)[step])
    match = int(_permutation(len(left), seed, 7, cycle, step)[match])
    first = _permutation(len(left), seed, 8, cycle)[match]
    second = _permutation(len(right), seed, 9, cycle)[(match + shift) % len(right)]
    return [left[first], right[second]]


def fill(template: str, ids: Sequence[int], vocabulary: Vocabulary) -> tuple[str, tuple]:
    """Put the names in their place: "a house", "a house and a fish", "a house, a fish and ..."."""
    before, after = template.split("{objects}")
    prompt, entities = before, []
    for place, class_id in enumerate(ids):
        if place:
            prompt += " and " if place == len(ids) - 1 else ", "
        entry = vocabulary[class_id]
        prompt += f"{entry.article} "
        entities.append(Entity(class_id, entry.name, (len(prompt), len(prompt) + len(entry.name))))
        prompt += entry.name
    return prompt + after, tuple(entities)
