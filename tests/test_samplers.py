"""The tables of the samplers, for any number of processes, without a process group."""

import itertools

import pytest

from ovseg.data.samplers import (
    ShardSampler,
    TestSampler,
    TrainSampler,
    even_batches,
    shard_batches,
    shuffled_batches,
    whole_batches,
)

GRID = list(itertools.product([1, 2, 5, 7, 16, 33], [1, 2, 4, 16], [1, 2, 3]))


def flat(tables):
    return sorted(position for table in tables for batch in table for position in batch)


@pytest.mark.parametrize("size, batch_size, world", GRID)
def test_whole_batches_are_those_of_one_process(size, batch_size, world):
    tables = [whole_batches(size, batch_size, rank, world) for rank in range(world)]
    alone = whole_batches(size, batch_size)
    assert flat(tables) == list(range(size))
    assert sorted(itertools.chain(*tables)) == alone
    assert all(len(batch) == batch_size for batch in alone[:-1])


@pytest.mark.parametrize("size, batch_size, world", [g for g in GRID if g[0] >= g[2]])
def test_even_batches_give_every_rank_as_many(size, batch_size, world):
    tables = [even_batches(size, batch_size, rank, world) for rank in range(world)]
    assert flat(tables) == list(range(size))
    assert len({len(table) for table in tables}) == 1
    sizes = {len(batch) for table in tables for batch in table}
    assert max(sizes) <= batch_size + 1 and min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1 or world == 1


@pytest.mark.parametrize("size, batch_size, world", GRID)
def test_shuffled_batches(size, batch_size, world):
    tables = [shuffled_batches(size, batch_size, 0, 0, rank, world) for rank in range(world)]
    positions = flat(tables)
    assert len(positions) == size // (batch_size * world) * batch_size * world
    assert len(set(positions)) == len(positions) and set(positions) <= set(range(size))
    assert len({len(table) for table in tables}) == 1
    assert all(len(batch) == batch_size for table in tables for batch in table)


def test_order_depends_on_seed_and_epoch():
    first = shuffled_batches(64, 4, seed=0, epoch=0)
    assert first == shuffled_batches(64, 4, seed=0, epoch=0)
    assert first != shuffled_batches(64, 4, seed=0, epoch=1)
    assert first != shuffled_batches(64, 4, seed=1, epoch=0)
    # two processes take turns through the order of one
    halves = [shuffled_batches(64, 4, 0, 0, rank, 2) for rank in (0, 1)]
    assert [batch for pair in zip(*halves, strict=True) for batch in pair] == first


def test_shards_stay_whole_and_keep_their_batches():
    # 10 samples, shards of 4: (0-3), (4-7), (8-9); batches of 3 inside each
    expected = {0: [[0, 1, 2], [3]], 1: [[4, 5, 6], [7]], 2: [[8, 9]]}
    assert shard_batches(10, 3, 4, [0, 1, 2]) == expected[0] + expected[1] + expected[2]
    assert shard_batches(10, 3, 4, [2, 0, 1], rank=0, world=2) == expected[0] + expected[2]
    assert shard_batches(10, 3, 4, [2, 0, 1], rank=1, world=2) == expected[1]


def test_ranks_without_a_shard_get_an_empty_batch():
    assert shard_batches(10, 3, 4, [1], rank=1, world=2) == [[]]
    assert shard_batches(10, 3, 4, [], rank=0, world=1) == [[]]
    sampler = ShardSampler(range(10), 3, 4, [1], rank=1, world=2)
    assert len(sampler) == 1 and list(sampler) == [[]]


def test_a_shard_is_claimed_when_its_turn_comes():
    asked = []

    def claim(shard):
        asked.append(shard)
        return shard != 1

    given = iter(ShardSampler(range(10), 3, 4, [0, 1, 2], claim=claim))
    assert asked == [] and next(given) == [0, 1, 2]
    assert asked == [0] and list(given) == [[3], [8, 9]]
    assert asked == [0, 1, 2]


def test_test_sampler_refuses_idle_ranks():
    assert list(TestSampler(range(5), 2, rank=1, world=2)) == [[2, 3]]
    assert list(TestSampler(range(5), 2, even=True, rank=1, world=2)) == [[2], [4]]
    with pytest.raises(ValueError, match="4 samples in batches of 4 leave one of 2 processes"):
        TestSampler(range(4), 4, rank=0, world=2)
    with pytest.raises(ValueError, match="1 samples"):
        TestSampler(range(1), 4, even=True, rank=0, world=2)
    for even in (False, True):  # nothing at all is nothing for everybody
        assert list(TestSampler([], 4, even, rank=1, world=2)) == []


def test_train_sampler_follows_the_epoch_and_skips():
    sampler = TrainSampler(range(20), 3, seed=5)
    assert len(sampler) == 6
    sampler.set_epoch(2)
    expected = shuffled_batches(20, 3, 5, 2)
    sampler.skip = 4
    assert list(sampler) == expected[4:] and len(sampler) == 6
    sampler.skip = 0
    assert list(sampler) == expected
    with pytest.raises(ValueError, match="20 training samples give no batch of 16 to each of 2"):
        TrainSampler(range(20), 16, seed=0, world=2)
