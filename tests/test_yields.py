"""Counting what was kept, and the shards that a quota takes."""

import json
from collections import Counter

import pytest

from ovseg.data.shard_format import Record
from ovseg.data.yields import Plan, Yield, never_asked, plan
from ovseg.quality import Facts
from ovseg.structures import Entity, Request

CONFIG = {"size": 5, "shard_size": 2, "quota": 3, "limit": 13, "requested_classes": None}


def record(ids, found=None, verdict=None):
    entities = tuple(Entity(class_id, "thing") for class_id in ids)
    facts = [Facts("thing", ok, 1.0) for ok in found or [True] * len(ids)]
    return Record(Request(0, 0, "", entities), facts, [1.0], verdict or [""] * len(ids))


def test_counts_by_hand():
    total = Yield.of(
        [
            record([1, 2]),
            record([2, 1], verdict=["area 0.1 < 0.2, at the border", "area 0.15 < 0.2"]),
            record([1, 0], found=[False, True]),
            record([]),
            record([2], verdict=["area 0 < 0.2"]),
        ]
    )
    assert total.describe(["background", "cat", "dog"]) == {
        "kept": 3,
        "rejected": 2,
        "classes": {"cat": {"asked": 3, "kept": 1}, "dog": {"asked": 3, "kept": 1}},
        "reasons": {"area < 0.2": 2, "at the border": 1},
    }
    twice = Yield.sum([total, total])
    assert twice.kept == 6 and twice.asked[2] == 6 and twice.reasons["at the border"] == 2
    assert total.kept == 3 and Yield.sum([]) == Yield()
    assert Yield.from_dict(json.loads(json.dumps(vars(total)))) == total


def shard(**gained):
    """Return the yield of a shard in which classes 1 and 2 were asked for, some kept."""
    counts = Counter({int(key[1:]): number for key, number in gained.items()})
    return Yield(kept=1, rejected=1, asked=Counter({1: 2, 2: 2}), gained=counts)


def test_without_a_quota_it_is_the_size():
    config = {**CONFIG, "quota": None, "limit": None}
    assert plan(config, set(), pytest.fail) == Plan(3, True, {})


@pytest.mark.parametrize(
    ("done", "ahead", "expected"),
    [
        (0, 1, Plan(3, False, {})),  # the shards of `size` in any case
        (2, 4, Plan(6, False, {2: 2})),
        (3, 1, Plan(4, False, {2: 1})),
        (3, 9, Plan(7, False, {2: 1})),  # `limit` is reached
        (4, 1, Plan(4, True, {})),
        (7, 1, Plan(4, True, {})),  # some were made ahead, and are not needed
    ],
)
def test_shards_follow_until_every_class_has_its_quota(done, ahead, expected):
    yields = [shard(c1=2, c2=1), shard(c1=2), shard(c2=1), shard(c2=1), *[shard()] * 3]
    assert plan(CONFIG, set(range(done)), yields.__getitem__, ahead) == expected


def test_a_gap_hides_what_follows():
    yields = [shard(c1=3, c2=3)] * 7
    assert plan(CONFIG, {0, 2, 3}, yields.__getitem__) == Plan(3, False, {})
    assert plan(CONFIG, {0, 1, 2}, yields.__getitem__) == Plan(3, True, {})


def test_a_class_that_is_still_to_be_asked_for_is_missing():
    yields = [shard(c1=3, c2=3)] * 7
    config = {**CONFIG, "quota_classes": [1, 4]}
    assert plan(config, {0, 1, 2}, yields.__getitem__) == Plan(4, False, {4: 3})
    total = {"classes": {"cat": {"asked": 2, "kept": 2}, "dog": {"asked": 2, "kept": 2}}}
    words = {"vocabulary": {"keys": ["background", "cat", "dog", "cow", "bus"]}}
    assert never_asked({**config, **words}, total) == ["bus"]
    assert never_asked({**CONFIG, **words}, total) == ["cow", "bus"]
    assert never_asked({**CONFIG, **words, "requested_classes": [2, 3]}, total) == ["cow"]


def test_the_limit_ends_it_and_unknown_classes_do_not_count():
    yields = [shard(c1=3)] * 7
    assert plan(CONFIG, set(range(7)), yields.__getitem__) == Plan(7, True, {2: 3})
    known = {**CONFIG, "requested_classes": [1]}
    assert plan(known, set(range(7)), yields.__getitem__) == Plan(3, True, {})
