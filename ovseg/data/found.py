"""The part of a dataset in which the annotator found everything that was asked for."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

from ovseg.data.shard_file import read_records
from ovseg.data.shard_format import StoredSample
from ovseg.data.shards import ShardStream


class FoundStream(ShardStream):
    """The samples of a folder of shards in which every prompted name was found.

    A test set without them would score images that do not show what was asked for; a training set
    would call a missing object background. There may be none: `test` then has no score for the
    stream, `fit` refuses it. A filter (`ovseg.quality`) can keep them from being written at all.

    Args:
        path: Folder that `predict` wrote, or its URL: then every shard is fetched at once.
        limit: Take the first of these samples only.
        cache: See `ShardStream`.
        cache_dir: See `ShardStream`.

    Raises:
        ValueError: If limit is not positive.
    """

    def __init__(
        self,
        path: str,
        limit: int | None = None,
        cache: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(path, cache=cache, cache_dir=cache_dir)
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be >= 1 or null, got {limit}")
        self.most = limit

    @cached_property
    def positions(self) -> list[int]:
        """Positions in the folder of all samples in which every name was found."""
        found = [
            all(facts.found for facts in record.facts)
            for name, count in self._shards
            for record in read_records(self.source.shard(name), count)
        ]
        return [position for position, all_found in enumerate(found) if all_found]

    @property
    def excluded(self) -> float:
        """Share of the folder's samples in which a name was not found."""
        samples = super().__len__()
        return 1 - len(self.positions) / samples if samples else 0.0

    def __len__(self) -> int:
        return len(self.positions[: self.most])

    def _read(self, position: int, only: Collection[str] | None = None) -> StoredSample:
        return super()._read(self.positions[position], only)
