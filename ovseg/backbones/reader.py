"""All that is read from a U-Net on its way: tapped maps, probes, cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ovseg.backbones.attention import AttentionCapture, ProbeRecorder, stack_probes
from ovseg.backbones.taps import TapRecorder, split_branches
from ovseg.structures import Features, FeatureSpec, Probe


class Reading(NamedTuple):
    """What one tapped call showed: ``{tap: (B, G, C, h, w)}``, and probes with S = 1."""

    maps: dict[str, Tensor]
    probes: dict[str, Probe]


class FeatureReader:
    """Call a U-Net and read from it.

    Args:
        network: A U-Net of diffusers, not compiled yet.
        spec: What to read.
        attention: Modules whose cross-attention is averaged; may be empty.

    Raises:
        ValueError: If a module does not exist.
    """

    def __init__(self, network: nn.Module, spec: FeatureSpec, attention: Sequence[str]) -> None:
        self.network, self.spec = network, spec
        self._taps = TapRecorder(network, list(spec.taps))
        self._probes = ProbeRecorder(network, list(spec.probes))
        self._capture = AttentionCapture(network, attention) if attention else None

    def watching(
        self, tokens: Sequence[Sequence[Sequence[int]]], size: int
    ) -> AbstractContextManager:
        """Average cross-attention while the context lasts; see `AttentionCapture.watching`."""
        return self._capture.watching(tokens, size) if self._capture else nullcontext()

    def call(self, latents: Tensor, timestep: Tensor, text: Tensor, branches: int) -> Tensor:
        """Return the U-Net's output for all guidance branches of ``latents (B, C, h, w)``."""
        return self.network(
            torch.cat([latents] * branches),
            timestep,
            encoder_hidden_states=text,
            return_dict=False,
        )[0]

    def read(
        self, latents: Tensor, timestep: Tensor, text: Tensor, branches: int
    ) -> tuple[Tensor, Reading]:
        """Do a tapped call; return the output and what it showed."""
        with self._taps.recording() as outputs, self._probes.recording(len(latents)) as probes:
            output = self.call(latents, timestep, text, branches)
        kept = self.spec.branches
        return output, Reading(
            {name: split_branches(o, branches, kept) for name, o in outputs.items()},
            {name: probes[name] for name in self.spec.probes},
        )

    def collect(self, readings: Sequence[Reading]) -> Features:
        """Put the tapped calls together, in the order of S."""
        maps = {
            tap: torch.stack([reading.maps[tap] for reading in readings], dim=1)
            for tap in self.spec.taps
        }
        attention = self._capture.mean() if self._capture else None
        return Features(maps, attention, stack_probes([reading.probes for reading in readings]))
