"""Which classes stand in a prompt, exactly balanced over consecutive indices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal, TypeVar

import numpy as np

from ovseg.vocabulary import Vocabulary

Value = TypeVar("Value")
Classes = Literal["seen", "unseen", "all", "mixed"] | list[str]


class BalancedChoice:
    """Balance the numbers of objects, the classes and the pairs.

    The numbers of objects come in the given shares over a short period (a quarter and three
    quarters: over every 4 indices). One object: every class once per round of all classes. Two
    objects: rounds in which every class occurs once (or as often as the others), all pairs once
    per tournament of such rounds. More objects: rounds of disjoint groups. Rounds and pairs are
    shuffled by the seed; a class never occurs twice in a prompt.

    Args:
        objects: ``{number of objects: share}``; shares are divided by their sum.
        classes: "seen", "unseen", "all", a list of names, or "mixed": two objects, one seen and
            one unseen.

    Raises:
        ValueError: If the shares or the classes are not as described.
    """

    def __init__(self, objects: dict[int, float], classes: Classes) -> None:
        self.shares = _shares(objects)
        self.classes = classes
        if isinstance(classes, str) and classes not in ("seen", "unseen", "all", "mixed"):
            raise ValueError(f"classes must be seen, unseen, all, mixed or names, got {classes!r}")
        if classes == "mixed" and set(self.shares) != {2}:
            raise ValueError(
                f"classes 'mixed' pairs a seen with an unseen class: objects must be {{2: 1}}, "
                f"got {dict.fromkeys(self.shares, '...')}"
            )
        period = math.lcm(*(share.denominator for share in self.shares.values()))
        self._kinds = [k for k, share in self.shares.items() for _ in range(int(share * period))]

    def ids(self, index: int, vocabulary: Vocabulary, seed: int) -> list[int]:
        """Return the different class ids of prompt number ``index``, in no order of interest.

        Raises:
            ValueError: If index or seed is negative, or a prompt needs more classes than there are.
        """
        if index < 0 or seed < 0:
            raise ValueError(f"index and seed must be >= 0, got {index} and {seed}")
        count, turn = self._kind(index, seed)
        return self._choose(count, turn, vocabulary, seed)

    def classes_of(self, vocabulary: Vocabulary) -> set[int]:
        """Return the ids of the classes that prompts name sooner or later."""
        return set(vocabulary.select("all" if self.classes == "mixed" else self.classes))

    def describe(self) -> dict:
        """Return the arguments."""
        return {
            "objects": {str(k): str(share) for k, share in self.shares.items()},
            "classes": self.classes,
        }

    def _kind(self, index: int, seed: int) -> tuple[int, int]:
        """Return the number of objects at this index, and how many such prompts came before."""
        cycle, place = divmod(index, len(self._kinds))
        order = [self._kinds[i] for i in permutation(len(self._kinds), seed, 1, cycle)]
        count = order[place]
        return count, cycle * order.count(count) + order[:place].count(count)

    def _choose(self, count: int, turn: int, vocabulary: Vocabulary, seed: int) -> list[int]:
        """Return the classes of prompt number ``turn`` among those of ``count`` objects."""
        if self.classes == "mixed":
            seen, unseen = vocabulary.seen, vocabulary.unseen
            if not seen or not unseen:
                raise ValueError(f"split {vocabulary.split!r} has no {'un' * bool(seen)}seen class")
            return _mixed_pair(seen, unseen, turn, seed)
        ids = self._allowed(vocabulary)
        return _pair(ids, turn, seed) if count == 2 else _group(ids, count, turn, seed)

    def _allowed(self, vocabulary: Vocabulary) -> tuple[int, ...]:
        ids = vocabulary.select(self.classes)
        if max(self.shares) > len(ids):
            which = self.classes if isinstance(self.classes, str) else "given"
            raise ValueError(
                f"a prompt of {max(self.shares)} objects needs as many {which} classes; "
                f"split {vocabulary.split!r} of {vocabulary.name!r} has {len(ids)}"
            )
        return ids


def by_class(given: Mapping[str, Value], vocabulary: Vocabulary, source: str) -> dict[int, Value]:
    """Return what is given of classes by their ids.

    Args:
        given: By names, keys or synonyms.
        vocabulary: Knows them.
        source: Where it stands, for messages.

    Raises:
        ValueError: If a class is unknown, or occurs twice.
    """
    try:
        ids = vocabulary.select(list(given))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return dict(zip(ids, given.values(), strict=True))


def raw_draws(count: int, *key: int) -> np.ndarray:
    """Return ``count`` raw uint64 of a generator of its own (numpy never changes these)."""
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)


def unit(draw: np.uint64) -> float:
    """Return a raw draw as a number in [0, 1)."""
    return int(draw >> np.uint64(11)) / 2**53


def permutation(count: int, *key: int) -> np.ndarray:
    """Return a permutation of ``range(count)`` that the key decides."""
    return np.argsort(raw_draws(count, *key), kind="stable")


def _shares(objects: dict[int, float]) -> dict[int, Fraction]:
    """Return shares that sum to 1, as fractions with small denominators."""
    weights = {int(count): float(share) for count, share in objects.items()}
    total = sum(weights.values())
    if min(weights) < 1 or min(weights.values()) < 0 or not 0 < total < math.inf:
        raise ValueError(f"objects maps numbers >= 1 to shares >= 0 of positive sum, got {objects}")
    parts = {k: w / total for k, w in sorted(weights.items()) if w}
    shares = {k: Fraction(part).limit_denominator(100) for k, part in parts.items()}
    # as near as three digits are: 0.333 and 0.167 stand for a third and a sixth
    near = all(math.isclose(shares[k], part, rel_tol=5e-3) for k, part in parts.items())
    if sum(shares.values()) != 1 or not near:
        raise ValueError(f"shares must be fractions of at most 100 parts, got {objects}")
    return shares


def _group(ids: Sequence[int], count: int, turn: int, seed: int) -> list[int]:
    """Cut shuffled classes into groups; what is left over differs from round to round."""
    cycle, place = divmod(turn, len(ids) // count)
    order = permutation(len(ids), seed, 2, count, cycle)
    return [ids[i] for i in order[place * count : (place + 1) * count]]


def _pair(ids: Sequence[int], turn: int, seed: int) -> list[int]:
    """Return a pair of a round-robin tournament (circle method)."""
    size = len(ids)
    rounds, per_round = size - 1 + size % 2, size // 2
    cycle, place = divmod(turn, rounds * per_round)
    step, match = divmod(place, per_round)
    number = int(permutation(rounds, seed, 3, cycle)[step])
    match = int(permutation(per_round, seed, 4, cycle, step)[match])
    # with an odd number of classes nobody sits in the middle, and match 0 is left out
    match += size % 2
    first = (number + match) % rounds
    second = (number - match) % rounds if match else size - 1
    names = permutation(size, seed, 5, cycle)
    return [ids[names[first]], ids[names[second]]]


def _mixed_pair(left: Sequence[int], right: Sequence[int], turn: int, seed: int) -> list[int]:
    """Return a pair of a tournament of two teams: every round has the larger team once."""
    if len(left) < len(right):
        left, right = right, left
    cycle, place = divmod(turn, len(left) * len(right))
    step, match = divmod(place, len(left))
    shift = int(permutation(len(right), seed, 6, cycle)[step])
    match = int(permutation(len(left), seed, 7, cycle, step)[match])
    first = permutation(len(left), seed, 8, cycle)[match]
    second = permutation(len(right), seed, 9, cycle)[(match + shift) % len(right)]
    return [left[first], right[second]]
