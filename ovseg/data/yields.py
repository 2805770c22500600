"""What a filter left of a dataset, and how many shards that makes it take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ovseg.data.shard_format import Record
from ovseg.quality import kinds_of


@dataclass
class Yield:
    """How many samples were kept, of which classes, and why the others were not.

    Attributes:
        kept: Samples in which nothing is wrong.
        rejected: The others.
        asked: ``{class id: samples whose prompt names it}``.
        gained: ``{class id: kept samples in which it was found}``.
        reasons: ``{kind of reason: samples rejected for it}``, maybe for others too.
    """

    kept: int = 0
    rejected: int = 0
    asked: Counter[int] = field(default_factory=Counter)
    gained: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Yield:
        """Count samples."""
        total = cls()
        for record in records:
            total.kept += record.kept
            total.rejected += not record.kept
            pairs = zip(record.request.entities, record.facts, strict=True)
            known = [(e.class_id, record.kept and one.found) for e, one in pairs if e.class_id]
            total.asked.update({class_id for class_id, _ in known})
            total.gained.update({class_id for class_id, gained in known if gained})
            total.reasons.update({kind for why in record.verdict for kind in kinds_of(why)})
        return total

    @classmethod
    def sum(cls, yields: Iterable[Yield]) -> Yield:
        """Count the samples of several."""
        total = cls()
        for one in yields:
            total += one
        return total

    def __iadd__(self, other: Yield) -> Yield:
        self.kept += other.kept
        self.rejected += other.rejected
        for name in ("asked", "gained", "reasons"):
            getattr(self, name).update(getattr(other, name))
        return self

    @classmethod
    def from_dict(cls, stored: dict) -> Yield:
        """Return what ``vars`` gave of one, after JSON has made text of its class ids."""
        asked, gained = ({int(i): n for i, n in stored[k].items()} for k in ("asked", "gained"))
        counts = map(Counter, (asked, gained, stored["reasons"]))
        return cls(stored["kept"], stored["rejected"], *counts)

    def describe(self, keys: Sequence[str]) -> dict:
        """Return JSON-ready numbers.

        Args:
            keys: The vocabulary's keys by id.
        """
        classes = {i: {"asked": self.asked[i], "kept": self.gained[i]} for i in sorted(self.asked)}
        return {
            "kept": self.kept,
            "rejected": self.rejected,
            "classes": {keys[class_id]: numbers for class_id, numbers in classes.items()},
            "reasons": {kind: self.reasons[kind] for kind in sorted(self.reasons)},
        }


class Plan(NamedTuple):
    """Which shards a dataset takes, as far as its finished ones tell.

    Attributes:
        shards: Those with smaller numbers.
        settled: Whether it will not be more.
        missing: ``{class id: kept samples that its quota lacks}``.
    """

    shards: int
    settled: bool
    missing: dict[int, int]


def plan(
    config: dict, done: Collection[int], yield_of: Callable[[int], Yield], ahead: int = 1
) -> Plan:
    """Decide how many shards a dataset takes.

    Without a quota those of its `size`. With one at least those, then one after another until
    every class has as many samples or `limit` is reached. Only finished shards in the order of
    their numbers decide, so that processes and interruptions do not.

    Args:
        config: The dataset's; `size`, `shard_size`, `quota`, `quota_classes`, `limit` and
            `requested_classes` count.
        done: Numbers of the finished shards.
        yield_of: The yield of a finished shard.
        ahead: How many shards to make after the last that is known to be needed, in search of
            what is missing.
    """
    first = -(-config["size"] // config["shard_size"])
    if config.get("quota") is None:
        return Plan(first, True, {})
    most, so_far = -(-config["limit"] // config["shard_size"]), Yield()
    for number in range(most):
        if number >= first and not _missing(config, so_far):
            return Plan(number, True, {})
        if number not in done:
            until = min(max(first, number + ahead), most)
            return Plan(until, False, _missing(config, so_far))
        so_far += yield_of(number)
    return Plan(most, True, _missing(config, so_far))


def never_asked(config: dict, counted: dict) -> list[str]:
    """Return the keys of the classes that the annotator may find and that no prompt asked for.

    Args:
        config: The dataset's.
        counted: `yield` of its `dataset.json`.
    """
    keys = config["vocabulary"]["keys"]
    known = (config.get(name) for name in ("quota_classes", "requested_classes"))
    ids = next((ids for ids in known if ids is not None), range(1, len(keys)))
    return [keys[class_id] for class_id in sorted(ids) if keys[class_id] not in counted["classes"]]


def _missing(config: dict, so_far: Yield) -> dict[int, int]:
    """Return what every class lacks that is asked for and that the annotator may find.

    Where it is not known which will be, those that were asked for so far count.
    """
    asked = config.get("quota_classes")
    if asked is None:
        asked = so_far.asked.keys()
        if config.get("requested_classes") is not None:
            asked &= set(config["requested_classes"])
    lacks = {class_id: config["quota"] - so_far.gained[class_id] for class_id in sorted(asked)}
    return {class_id: number for class_id, number in lacks.items() if number > 0}
