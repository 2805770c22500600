"""Which positions form a batch, and which process gets it.

Each rule is a pure function that returns a table (a list of lists of positions); the sampler
classes only hold one. They are `DistributedSampler`s so that Lightning leaves them alone, and yield
whole batches, so that it cannot split one: ``DataLoader(stream, batch_size=None, sampler=...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
from torch.utils.data import Dataset, DistributedSampler


def whole_batches(size: int, batch_size: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """Return fixed batches of consecutive positions, every ``world``-th of them.

    A batch has the same members on any number of processes; their numbers may differ by one.
    """
    starts = range(rank * batch_size, size, world * batch_size)
    return [list(range(start, min(start + batch_size, size))) for start in starts]


def even_batches(size: int, batch_size: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """Return batches of about equal size, equally many on every rank, each position once.

    Those of `whole_batches` if there is one process.
    """
    if world == 1:
        return whole_batches(size, batch_size)
    per_rank = max(1, min(-(-size // (world * batch_size)), size // world))
    parts = np.array_split(np.arange(size), world * per_rank)
    return [part.tolist() for part in parts[rank::world]]


def shuffled_batches(
    size: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """Return full batches in the order of (seed, epoch), equally many on every rank.

    The samples that fill no batch on every rank are left out of this epoch.
    """
    key = np.random.SeedSequence((seed, epoch))
    order = np.argsort(np.random.Philox(key).random_raw(size), kind="stable")
    per_rank = size // (world * batch_size)
    # (batches of a rank, ranks, positions of a batch)
    table = order[: per_rank * world * batch_size].reshape(per_rank, world, batch_size)
    return table[:, rank].tolist()


def shard_batches(
    size: int,
    batch_size: int,
    shard_size: int,
    pending: Sequence[int],
    rank: int = 0,
    world: int = 1,
) -> list[list[int]]:
    """Return the batches of whole shards: fixed batches inside a shard, shards dealt out in turn.

    A rank without a shard gets one empty batch, so that nobody waits for it in vain.
    """
    batches = []
    for shard in sorted(pending)[rank::world]:
        start, end = shard * shard_size, min((shard + 1) * shard_size, size)
        inside = whole_batches(end - start, batch_size)
        batches += [[start + position for position in batch] for batch in inside]
    return batches or [[]]


class BatchSampler(DistributedSampler):
    """Yield a table's batches.

    Args:
        stream: What is sampled.
        batches: The batches of this rank.
        rank: This process.
        world: Number of processes.
    """

    def __init__(self, stream: Dataset, batches: list[list[int]], rank: int, world: int) -> None:
        super().__init__(stream, num_replicas=world, rank=rank, shuffle=False)
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class ShardSampler(BatchSampler):
    """Whole pending shards, see `shard_batches`; for `predict`.

    Args:
        stream: What is sampled.
        batch_size: Largest batch.
        shard_size: Positions of a shard.
        pending: Numbers of the shards.
        rank: This process.
        world: Number of processes.
        claim: Asked for a shard when its first batch is due; if it says no, the shard is left out.
    """

    def __init__(
        self,
        stream: Dataset,
        batch_size: int,
        shard_size: int,
        pending: Sequence[int],
        rank: int = 0,
        world: int = 1,
        claim: Callable[[int], bool] = lambda shard: True,
    ) -> None:
        batches = shard_batches(len(stream), batch_size, shard_size, pending, rank, world)
        super().__init__(stream, batches, rank, world)
        self.shard_size, self.claim = shard_size, claim

    def __iter__(self) -> Iterator[list[int]]:
        for shard, batches in groupby(self.batches, self._shard_of):
            if shard is None or self.claim(shard):
                yield from batches

    def _shard_of(self, batch: list[int]) -> int | None:
        return batch[0] // self.shard_size if batch else None


class TestSampler(BatchSampler):
    """Every position once, no repeats.

    Args:
        stream: What is sampled.
        batch_size: Largest batch (one more where ``even`` could not be kept otherwise).
        even: Equally many batches on every rank, for validation inside `fit`, where the model is
            wrapped; otherwise the batches are those of one process.
        rank: This process.
        world: Number of processes.

    Raises:
        ValueError: If one rank would get nothing and another something.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(
        self, stream: Dataset, batch_size: int, even: bool = False, rank: int = 0, world: int = 1
    ) -> None:
        size = len(stream)
        table = even_batches if even else whole_batches
        if size and (size < world if even else size <= (world - 1) * batch_size):
            raise ValueError(
                f"{size} samples in batches of {batch_size} leave one of {world} processes without "
                "any: take a smaller data.batch_size, fewer devices or more samples"
            )
        batches = table(size, batch_size, rank, world) if size else []
        super().__init__(stream, batches, rank, world)


class TrainSampler(DistributedSampler):
    """Shuffled full batches, see `shuffled_batches`; of a fresh stream new positions every epoch.

    Attributes:
        skip: Number of first batches to leave out (`TrainLoader` resumes inside an epoch).

    Raises:
        ValueError: If there is no full batch for every rank.
    """

    def __init__(
        self, stream: Dataset, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(stream, num_replicas=world, rank=rank, seed=seed)
        self.batch_size = batch_size
        self.skip = 0
        if not len(self):
            raise ValueError(
                f"{len(stream)} training samples give no batch of {batch_size} to each of {world} "
                "processes: take a smaller data.batch_size, fewer devices or more samples"
            )

    def __iter__(self) -> Iterator[list[int]]:
        size = len(self.dataset)
        table = shuffled_batches(
            size, self.batch_size, self.seed, self.epoch, self.rank, self.num_replicas
        )
        start = self.epoch * size if getattr(self.dataset, "fresh", False) else 0
        return iter([[start + position for position in batch] for batch in table[self.skip :]])

    def __len__(self) -> int:
        return len(self.dataset) // (self.num_replicas * self.batch_size)
