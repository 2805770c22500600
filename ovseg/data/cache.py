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
                self._kept[positions[place]] = _row(made, row)
        return _stack([self._kept[position] for position in positions], names)


def _row(features: Features, row: int) -> Features:
    """Copy one sample, so that its batch can be forgotten."""
    attention = features.attention
    return Features(
        {tap: m[row].clone() for tap, m in features.maps.items()},
        None if attention is None else attention[row].clone(),
        {
            name: Probe(p.queries[row].clone(), p.totals[row].clone(), p.keys)
            for name, p in features.probes.items()
        },
    )


def _stack(rows: Sequence[Features], names: int) -> Features:
    """Make a batch of samples; attention is cut or padded with zeros to as many names."""
    first = rows[0]
    attention = None
    if first.attention is not None:
        maps = [r.attention[:names] for r in rows]
        attention = torch.stack([pad(m, (0, 0, 0, 0, 0, names - len(m))) for m in maps])
    return Features(
        {tap: torch.stack([r.maps[tap] for r in rows]) for tap in first.maps},
        attention,
        {
            name: Probe(
                torch.stack([r.probes[name].queries for r in rows]),
                torch.stack([r.probes[name].totals for r in rows]),
                probe.keys,
            )
            for name, probe in first.probes.items()
        },
    )
