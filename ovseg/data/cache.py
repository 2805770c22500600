"""Features kept in memory, so that a second epoch asks nothing of the backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import pad

from ovseg.structures import Features, Probe


class FeatureCache:
    """The features of single samples, by position, on the device where they were made."""

    def __init__(self) -> None:
        self._kept: dict[int, Features] = {}

    def get(
        self, positions: Sequence[int], names: int, make: Callable[[list[int]], Features]
    ) -> Features:
        """Return the features of samples.

        Args:
            positions: Which ones.
            names: K of the batch.
            make: Called with the places in ``positions`` that are not kept yet, if there are any.
        """
        missing = [place for place, position in enumerate(positions) if position not in self._kept]
        if missing:
            made = make(missing)
            for row, place in enumerate(missing):
                self._kept[positions[place]] = select_features(made, [row])
        return join_features([self._kept[position] for position in positions], names)


def select_features(features: Features, rows: list[int]) -> Features:
    """Copy some samples, so that their batch can be forgotten."""
    return Features(
        {tap: m[rows] for tap, m in features.maps.items()},
        None if features.attention is None else features.attention[rows],
        {
            name: Probe(p.queries[rows], p.totals[rows], p.keys)
            for name, p in features.probes.items()
        },
    )


def join_features(parts: Sequence[Features], names: int) -> Features:
    """Make one batch of several; attention is cut or padded with zeros to as many names."""
    first = parts[0]
    attention = None
    if all(part.attention is not None for part in parts):
        maps = [part.attention[:, :names] for part in parts]
        attention = torch.cat([pad(m, (0, 0, 0, 0, 0, names - m.shape[1])) for m in maps])
    return Features(
        {tap: torch.cat([part.maps[tap] for part in parts]) for tap in first.maps},
        attention,
        {
            name: Probe(
                torch.cat([part.probes[name].queries for part in parts]),
                torch.cat([part.probes[name].totals for part in parts]),
                probe.keys,
            )
            for name, probe in first.probes.items()
        },
    )
