"""Numbers of a dataset's classes, added up sample by sample."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from ovseg.quality import Facts

AREAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Bounds between the bins of areas, shares of the image."""

SCORES = tuple(tenth / 10 for tenth in range(1, 10))
"""Bounds between the bins of scores."""


@dataclass
class ClassNumbers:
    """What is known of the entities of a class.

    Attributes:
        class_id: In the vocabulary; 0 if the class is not there.
        images: Samples whose prompt names it.
        entities: Its entities; more than samples only if a prompt names it twice.
        score: Sum of the scores of those that were found.
        area: Sum of their areas.
        scores: How many of them lie in each bin of `SCORES`.
        areas: Likewise of `AREAS`; none of a dataset that does not store areas.
    """

    class_id: int
    images: int = 0
    entities: int = 0
    score: float = 0.0
    area: float = 0.0
    scores: list[int] = field(default_factory=lambda: [0] * (len(SCORES) + 1))
    areas: list[int] = field(default_factory=lambda: [0] * (len(AREAS) + 1))

    @property
    def found(self) -> int:
        """How many entities were found."""
        return sum(self.scores)

    @property
    def found_share(self) -> float:
        """Which share of the entities was found."""
        return self.found / self.entities

    @property
    def mean_score(self) -> float | None:
        """Mean score of found entities, None if there are none."""
        return self.score / self.found if self.found else None

    @property
    def mean_area(self) -> float | None:
        """Mean area of found entities, None if there are none or areas are not stored."""
        return self.area / sum(self.areas) if any(self.areas) else None

    def add(self, facts: Facts) -> None:
        """Count one entity."""
        self.entities += 1
        if not facts.found:
            return
        self.score += facts.score
        self.scores[bisect_right(SCORES, facts.score)] += 1
        if facts.area is not None:
            self.area += facts.area
            self.areas[bisect_right(AREAS, facts.area)] += 1


@dataclass
class Tally:
    """Numbers of the classes of some samples.

    Attributes:
        samples: How many.
        classes: By key.
        pairs: How many samples have both classes of a pair, which stand in alphabetic order.
    """

    samples: int = 0
    classes: dict[str, ClassNumbers] = field(default_factory=dict)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, keys: Sequence[str], class_ids: Sequence[int], facts: Sequence[Facts]) -> None:
        """Count one sample.

        Args:
            keys: Of the classes of its K entities.
            class_ids: Their ids.
            facts: What is known of each entity.
        """
        self.samples += 1
        for key, class_id, one in zip(keys, class_ids, facts, strict=True):
            self.classes.setdefault(key, ClassNumbers(class_id)).add(one)
        for key in set(keys):
            self.classes[key].images += 1
        self.pairs.update(combinations(sorted(set(keys)), 2))

    @property
    def scores(self) -> list[int]:
        """How many found entities lie in each bin of `SCORES`."""
        return _added(SCORES, (numbers.scores for numbers in self.classes.values()))

    @property
    def areas(self) -> list[int]:
        """How many found entities lie in each bin of `AREAS`."""
        return _added(AREAS, (numbers.areas for numbers in self.classes.values()))

    def most_frequent(self, limit: int) -> list[str]:
        """Return the keys of the classes with the most images, in alphabetic order."""
        keys = sorted(self.classes, key=lambda key: (-self.classes[key].images, key))
        return sorted(keys[:limit])

    def together(self, keys: Sequence[str]) -> list[list[int]]:
        """Return in how many samples each two of these classes occur together."""
        return [[self.pairs[min(a, b), max(a, b)] for b in keys] for a in keys]


def _added(bounds: Sequence[float], rows: Iterable[Sequence[int]]) -> list[int]:
    """Return the column sums of histograms."""
    empty = [0] * (len(bounds) + 1)
    return [sum(column) for column in zip(empty, *rows, strict=True)]
