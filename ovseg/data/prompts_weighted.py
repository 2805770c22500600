"""Which classes stand in a prompt, by weights, for example those that a test found weak."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from ovseg.data.prompts_choice import (
    BalancedChoice,
    Classes,
    by_class,
    permutation,
    raw_draws,
    unit,
)
from ovseg.vocabulary import Vocabulary

FLOOR = 0.05
"""Weight of a class whose IoU is 100: it is not forgotten."""
TRIES = 4000
"""Swaps that are tried to keep classes apart."""
TOO_MANY = (
    "never_together leaves no prompts of {count} objects that keep the weights: keep fewer classes "
    "apart, or ask for fewer objects"
)


class WeightedChoice(BalancedChoice):
    """Choose classes in proportion to weights, and keep some of them apart.

    The choice is of low discrepancy, no independent draws: systematic sampling with unequal
    probabilities. Prompts of k objects come in rounds, one for every k of the classes that have a
    weight, and in each round a class occurs as often as its share of the weights says, rounded down
    or up. For that the shares lie side by side, in an order shuffled for each round, and evenly
    spaced marks with one random offset hit them. A class stands in a prompt once at most: one with
    more than 1/k of the weight stands in all prompts of k, and the others share the rest. Pairs
    are as the orders have it, not balanced.

    Args:
        objects: As in `BalancedChoice`.
        classes: As in `BalancedChoice`, but not "mixed".
        weights: ``{class: weight >= 0}``; a class that is not named has weight 1.
        never_together: Lists of classes no two of which stand in one prompt. A round's order is
            changed by swaps until none do: its counts stay, but which of them are rounded up
            favours classes that may stand beside many, if there are few classes.
        source: Where the weights stand, for messages.

    Raises:
        ValueError: If an argument is not as described.
    """

    def __init__(
        self,
        objects: dict[int, float],
        classes: Classes,
        weights: dict[str, float],
        never_together: list[list[str]],
        source: str = "weights",
    ) -> None:
        super().__init__(objects, classes)
        if classes == "mixed":
            raise ValueError(
                "weights and never_together are for classes seen, unseen, all or a list of names, "
                "got mixed"
            )
        if not all(0 <= weight < math.inf for weight in weights.values()):
            raise ValueError(f"weights must be numbers >= 0, got {weights}")
        if any(len(group) < 2 for group in never_together):
            raise ValueError(
                f"never_together is a list of lists of two or more classes, got {never_together}"
            )
        self.weights, self.never_together, self.source = weights, never_together, source

    def describe(self) -> dict:
        """Return the arguments."""
        more = {"weights": self.weights, "never_together": self.never_together}
        return super().describe() | more

    def classes_of(self, vocabulary: Vocabulary) -> set[int]:
        """Return the ids of the classes that have a weight."""
        return set(self._weights(vocabulary))

    def _weights(self, vocabulary: Vocabulary) -> dict[int, float]:
        """Return the positive weights by class id."""
        named = by_class(self.weights, vocabulary, self.source)
        weights = {i: named.get(i, 1.0) for i in self._allowed(vocabulary)}
        return {i: weight for i, weight in weights.items() if weight}

    def _choose(self, count: int, turn: int, vocabulary: Vocabulary, seed: int) -> list[int]:
        weights = self._weights(vocabulary)
        if max(self.shares) > len(weights):
            raise ValueError(
                f"a prompt of {max(self.shares)} objects needs as many classes of positive weight, "
                f"got {len(weights)}"
            )
        apart = tuple(vocabulary.select(group) for group in self.never_together)
        cycle, place = divmod(turn, math.ceil(len(weights) / count))
        return list(_round(tuple(weights.items()), count, apart, seed, cycle)[place])


def weak_classes(path: str | Path) -> dict[str, float]:
    """Return weights that grow as the IoU of a class falls: 1 - IoU / 100 + 0.05.

    Args:
        path: A ``results.json`` that `ovseg test` wrote, of a grounding module or a segmenter. A
            class that several streams score has the mean of its IoUs.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no IoU of classes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no results {path}: give a results.json of `ovseg test`, or {{class: weight}}"
        )
    scores: dict[str, list[float]] = {}
    try:
        for stream in json.loads(path.read_text(encoding="utf-8")).values():
            for key, iou in stream["per_class"].items():
                scores.setdefault(key, []).append(float(iou))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no results: every stream must have per_class, an IoU of each class "
            f"({type(error).__name__}: {error})"
        ) from None
    ious = [iou for values in scores.values() for iou in values]
    if not ious or not all(0 <= iou <= 100 for iou in ious):
        raise ValueError(f"{path} must hold an IoU in 0..100 of one class at least, got {ious}")
    means = {key: math.fsum(values) / len(values) for key, values in scores.items()}
    return {key: round(1 - mean / 100 + FLOOR, 6) for key, mean in means.items()}


@lru_cache(maxsize=64)
def _round(
    weights: tuple[tuple[int, float], ...],
    count: int,
    apart: tuple[tuple[int, ...], ...],
    seed: int,
    cycle: int,
) -> list[tuple[int, ...]]:
    """Return the classes of every prompt of a round."""
    ids = np.array([class_id for class_id, _ in weights])
    shares = _inclusion([weight for _, weight in weights], count)
    size = math.ceil(len(ids) / count)
    draws = raw_draws(1 + 2 * TRIES, seed, 10, count, cycle)
    marks = (np.arange(size) + unit(draws[0])) / size
    forbidden = _forbidden([np.isin(ids, group) for group in apart], shares, count)
    order = permutation(len(ids), seed, 11, count, cycle)
    groups = _untangle(order, shares, marks, count, forbidden, draws[1:].reshape(-1, 2))
    return [tuple(ids[groups[i]].tolist()) for i in permutation(size, seed, 12, count, cycle)]


def _inclusion(weights: list[float], count: int) -> np.ndarray:
    """Return in which share of the prompts of ``count`` objects each class stands; sum: count."""
    shares = np.array(weights) * (count / math.fsum(weights))
    while (shares > 1 + 1e-9).any():
        full = shares >= 1
        rest = shares * ~full
        shares = full + rest * ((count - full.sum()) / math.fsum(rest))
    return shares


def _forbidden(groups: list[np.ndarray], shares: np.ndarray, count: int) -> np.ndarray:
    """Return ``(N, N)`` bool: pairs of classes that are kept apart.

    Args:
        groups: ``(N,)`` bool each: classes no two of which stand in a prompt.
        shares: ``(N,)``, what `_inclusion` returned.
        count: Objects per prompt.

    Raises:
        ValueError: If the classes of a group would have to stand in more prompts than there are.
    """
    if any(shares[group].sum() > 1 + 1e-9 for group in groups):
        raise ValueError(TOO_MANY.format(count=count))
    pairs = [group[:, None] & group for group in groups]
    same = np.eye(len(shares), dtype=bool)
    return np.any([same, *pairs], axis=0) & ~same


def _cut(order: np.ndarray, shares: np.ndarray, marks: np.ndarray, count: int) -> np.ndarray:
    """Return ``(size, count)`` places of the classes that the marks hit.

    Those with a share of 1 stand in every row; the marks hit the others, in their order.
    """
    full = shares > 1 - 1e-9
    others = order[~full[order]]
    hits = marks[:, None] + np.arange(count - full.sum())
    found = np.searchsorted(np.cumsum(shares[others]), hits, side="right")
    always = np.broadcast_to(np.flatnonzero(full), (len(marks), full.sum()))
    drawn = others[found.clip(max=len(others) - 1)] if len(others) else found
    return np.hstack([always, drawn]).astype(int)


def _untangle(
    order: np.ndarray,
    shares: np.ndarray,
    marks: np.ndarray,
    count: int,
    forbidden: np.ndarray,
    swaps: np.ndarray,
) -> np.ndarray:
    """Swap classes of the order until no row holds a forbidden pair; return the rows.

    Raises:
        ValueError: If that was not reached.
    """
    groups = _cut(order, shares, marks, count)
    wrong = forbidden[groups[:, :, None], groups[:, None]].sum()
    for pair in swaps % np.uint64(len(order)):
        if not wrong:
            break
        other = order.copy()
        other[pair] = order[pair[::-1]]
        rows = _cut(other, shares, marks, count)
        still = forbidden[rows[:, :, None], rows[:, None]].sum()
        if still <= wrong:
            order, groups, wrong = other, rows, still
    if wrong:
        raise ValueError(TOO_MANY.format(count=count))
    return groups
