"""All that is read from a denoiser on its way: tapped maps, probes, cross-attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ovseg.backbones.attention import AttentionCapture, ProbeRecorder, stack_probes
from ovseg.backbones.taps import TapRecorder, split_branches
from ovseg.structures import Features, FeatureSpec, Probe

Call = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]
"""Denoise: ``(N, C, h, w)``, a scalar timestep and the condition of N samples."""


class Reading(NamedTuple):
    """What one tapped call showed: ``{tap: (B, G, C, h, w)}``, and probes with S = 1."""

    maps: dict[str, Tensor]
    probes: dict[str, Probe]


class FeatureReader:
    """Call a denoiser and read from it.

    Args:
        denoise: Calls it.
        spec: What to read.
        taps: Hooks on the denoiser.
        probes: Probes on the denoiser, or None.
        capture: Averages cross-attention, or None.
    """

    def __init__(
        self,
        denoise: Call,
        spec: FeatureSpec,
        taps: TapRecorder,
        probes: ProbeRecorder | None = None,
        capture: AttentionCapture | None = None,
    ) -> None:
        self._denoise, self.spec = denoise, spec
        self._taps, self._probes, self._capture = taps, probes, capture

    def watching(
        self, tokens: Sequence[Sequence[Sequence[int]]], size: int
    ) -> AbstractContextManager:
        """Average cross-attention while the context lasts; see `AttentionCapture.watching`."""
        return self._capture.watching(tokens, size) if self._capture else nullcontext()

    def call(self, latents: Tensor, timestep: Tensor, condition: dict, branches: int) -> Tensor:
        """Return the output for all guidance branches of ``latents (B, C, h, w)``."""
        return self._denoise(torch.cat([latents] * branches), timestep, condition)

    def read(
        self, latents: Tensor, timestep: Tensor, condition: dict, branches: int
    ) -> tuple[Tensor, Reading]:
        """Do a tapped call; return the output and what it showed."""
        probing = self._probes.recording(len(latents)) if self._probes else nullcontext({})
        with self._taps.recording() as outputs, probing as probes:
            output = self.call(latents, timestep, condition, branches)
        kept = self.spec.branches
        return output, Reading(
            {name: split_branches(o, branches, kept) for name, o in outputs.items()},
            {name: probes[name] for name in self.spec.probes},
        )

    def forget(self) -> None:
        """Let go of what was made of weights, which are moved."""
        if self._probes is not None:
            self._probes.forget()

    def collect(self, readings: Sequence[Reading]) -> Features:
        """Put the tapped calls together, in the order of S."""
        maps = {
            tap: torch.stack([reading.maps[tap] for reading in readings], dim=1)
            for tap in self.spec.taps
        }
        attention = self._capture.mean() if self._capture else None
        return Features(maps, attention, stack_probes([reading.probes for reading in readings]))
