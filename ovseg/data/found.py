"""The part of a dataset in which the annotator found everything that was asked for."""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from ovseg.data.shard_file import read_members
from ovseg.data.shard_format import decode_record
from ovseg.data.shards import ShardStream


class FoundStream(ShardStream):
    """The samples of a folder of shards in which every prompted name was found.

    A test set without them would score images that do not show what was asked for; a training set
    would call a missing object background. There may be none: `test` then has no score for the
    stream, `fit` refuses it. A filter (`ovseg.quality`) can keep them from being written at all.

    `dataset.json` tells how many there are in each shard, so that a shard is read, or fetched, when
    its first sample is needed; of datasets that were written before it did, all are read at once.

    Args:
        path: Folder that `predict` wrote, or its URL.
        limit: Take the first of these samples only.
        cache: See `ShardStream`.
        max_damaged: See `ShardStream`. A sample whose JSON is damaged may stand among the found
            ones, and counts when it is to be read.
        cache_dir: See `ShardStream`.

    Raises:
        ValueError: If limit is not positive, or max_damaged no share.
    """

    def __init__(
        self,
        path: str,
        limit: int | None = None,
        cache: bool = False,
        max_damaged: float = 0.0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(path, limit, cache, max_damaged, cache_dir)
        self._rows: dict[str, list[int]] = {}

    @cached_property
    def _ends(self) -> list[int]:
        """Position after the last of these samples of every shard."""
        return list(accumulate(self._count(name) for name, _ in self._shards))

    @property
    def excluded(self) -> float:
        """Share of the folder's samples in which a name was not found."""
        samples = sum(count for _, count in self._shards)
        return 1 - self._ends[-1] / samples if samples else 0.0

    def _count(self, name: str) -> int:
        """Return how many samples of a shard are of these."""
        noted = self.manifest["shards"][name].get("all_found")
        return len(self._rows_of(name)) if noted is None else noted

    def _place(self, position: int) -> tuple[Path, int, int]:
        shard = bisect_right(self._ends, position)
        name, count = self._shards[shard]
        rows = self._rows_of(name)
        return self._path(name), count, rows[position - (self._ends[shard] - len(rows))]

    def _rows_of(self, name: str) -> list[int]:
        """Return which samples of a shard are of these; unreadable ones where some are missing.

        Raises:
            ValueError: If there are not as many as `dataset.json` tells.
        """
        if name not in self._rows:
            facts = self.manifest["shards"][name]
            found, damaged = _all_found(self._path(name), facts["samples"])
            missing = facts.get("all_found", len(found) + len(damaged)) - len(found)
            if not 0 <= missing <= len(damaged):
                raise ValueError(
                    f"in shard {self._path(name)} every name of {len(found)} samples was found, "
                    f"dataset.json says of {facts['all_found']}: make the dataset again"
                )
            self._rows[name] = sorted(found + damaged[:missing])
        return self._rows[name]


def _all_found(path: Path, samples: int) -> tuple[list[int], list[int]]:
    """Return which samples of a shard have every name found, and of which that cannot be read."""
    found, damaged = [], []
    for row, members in enumerate(read_members(path, samples, "json")):
        try:
            if all(facts.found for facts in decode_record(members["json"]).facts):
                found.append(row)
        except (ValueError, KeyError, TypeError):
            damaged.append(row)
    return found, damaged
