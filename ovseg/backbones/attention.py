"""Cross-attention of a U-Net: which pixels looked at which words, or would have.

The idea is DAAM's: Tang et al., "What the DAAM: Interpreting Stable Diffusion Using Cross
Attention", ACL 2023 (arXiv 2210.04885).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ovseg.backbones.taps import Meta
from ovseg.structures import Probe, TapSpec


class _Watch:
    """An attention processor that shows each call to a watcher and leaves its result alone."""

    def __init__(self, inner, name: str, watcher: AttentionCapture | ProbeRecorder) -> None:
        self.inner, self.name, self.watcher = inner, name, watcher

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        **kwargs,
    ) -> Tensor:
        if image_rotary_emb is not None:  # FLUX alone has it, and asks for it by this name
            kwargs["image_rotary_emb"] = image_rotary_emb
        if self.watcher.active and encoder_hidden_states is not None:
            self.watcher.add(self.name, attn, hidden_states, encoder_hidden_states, **kwargs)
        return self.inner(
            attn,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **kwargs,
        )


def cross_attention(network: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    """Return the ``attn2`` modules named by themselves or by blocks that hold some.

    Raises:
        ValueError: If a name holds no cross-attention; lists the blocks that do.
    """
    found = {n: m for n, m in network.named_modules() if n.split(".")[-1] == "attn2"}
    chosen: dict[str, nn.Module] = {}
    for layer in layers:
        inside = {n: m for n, m in found.items() if f"{n}.".startswith(f"{layer}.")}
        if not inside:
            blocks = dict.fromkeys(n.split(".transformer_blocks")[0] for n in found)
            raise ValueError(f"no cross-attention in {layer!r}; choose among {', '.join(blocks)}")
        chosen.update(inside)
    return chosen


def watch(modules: dict[str, nn.Module], watcher) -> None:
    """Show a watcher every call of attention modules."""
    for name, module in modules.items():
        module.set_processor(_Watch(module.processor, name, watcher))


class AttentionCapture:
    """Mean cross-attention of each entity's tokens over heads, layers and calls.

    Args:
        network: A U-Net of diffusers.
        layers: Names of ``attn2`` modules, or of blocks that hold some.

    Raises:
        ValueError: If a name holds no cross-attention; lists the blocks that do.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        watch(self.find(network, layers), self)
        self.weights: Tensor | None = None

    find = staticmethod(cross_attention)

    @property
    def active(self) -> bool:
        """Whether it is collecting."""
        return self.weights is not None

    @contextmanager
    def watching(self, tokens: Sequence[Sequence[Sequence[int]]], size: int) -> Iterator[None]:
        """Collect while the context lasts; then ask `mean`.

        Args:
            tokens: Token positions of each entity of each request; may be empty.
            size: Height and width to which all maps are resized.
        """
        self._tokens, self._size, self._sum, self._count = tokens, size, 0.0, 0
        self.weights = torch.zeros(len(tokens), max(1, *map(len, tokens)), 0)
        try:
            yield
        finally:
            self.weights = None

    def scores(self, attn: nn.Module, hidden: Tensor, text: Tensor, **_: Any) -> Tensor:
        """Return how much each pixel looked at each token, ``(B, h * w, T)``, mean over heads."""
        query = attn.head_to_batch_dim(attn.to_q(hidden))
        key = attn.head_to_batch_dim(attn.to_k(text))
        scores = attn.get_attention_scores(query, key).float()
        return scores.unflatten(0, (len(hidden), -1)).mean(dim=1)

    def add(self, name: str, attn: nn.Module, hidden: Tensor, text: Tensor, **more: Any) -> None:
        """Add one layer of one call; the conditional samples are the last B of the batch."""
        batch = len(self._tokens)
        scores = self.scores(attn, hidden[-batch:], text[-batch:], **more)
        if self.weights.shape[2] != scores.shape[2]:
            self.weights = self._weights(scores)
        maps = (scores @ self.weights.mT).mT  # (B, K, h * w)
        side = isqrt(maps.shape[2])
        maps = interpolate(maps.unflatten(2, (side, side)), size=self._size, mode="bilinear")
        self._sum, self._count = self._sum + maps, self._count + 1

    def _weights(self, scores: Tensor) -> Tensor:
        """Return ``(B, K, T)``: mean over an entity's tokens, zeros where it has none."""
        weights = scores.new_zeros(*self.weights.shape[:2], scores.shape[2])
        for row, entities in enumerate(self._tokens):
            for column, positions in enumerate(entities):
                weights[row, column, list(positions)] = 1 / max(1, len(positions))
        return weights

    def mean(self) -> Tensor:
        """Return the mean maps ``(B, K, size, size)`` float32, once: they are not kept.

        Raises:
            RuntimeError: If no watched layer was called since it was asked last.
        """
        if not self._count:
            raise RuntimeError("no cross-attention arrived: the chosen layers were not called")
        mean = self._sum / self._count
        self._sum, self._count = 0.0, 0
        return mean


class ProbeRecorder:
    """Keep what is needed to ask cross-attention layers for any name, during chosen calls.

    Args:
        network: A U-Net of diffusers.
        layers: Names of ``attn2`` modules, or of blocks that hold some; may be empty.

    Raises:
        ValueError: See `cross_attention`.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        self._layers = cross_attention(network, layers)
        watch(self._layers, self)
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        self._batch = 0
        self._keys: dict[str, tuple[Tensor, tuple, Tensor]] = {}

    @property
    def active(self) -> bool:
        """Whether it is recording."""
        return self._batch > 0

    @contextmanager
    def recording(self, batch: int) -> Iterator[dict[str, Probe]]:
        """Fill the yielded dict with probes of one step (S = 1), at the end of the context.

        Args:
            batch: B, the number of conditional samples: the last ones of each call.
        """
        self._seen, self._batch = {}, batch
        probes: dict[str, Probe] = {}
        try:
            yield probes
            for name, seen in self._seen.items():  # out of what may be compiled
                probes[name] = Probe(*seen, self._keys_of(name))
        finally:
            self._seen, self._batch = {}, 0

    def add(self, name: str, attn: nn.Module, hidden: Tensor, text: Tensor, **_: Any) -> None:
        """Keep one layer of one call."""
        hidden, text = hidden[-self._batch :], text[-self._batch :]
        query, key = (
            x.float().unflatten(2, (attn.heads, -1)) for x in (attn.to_q(hidden), attn.to_k(text))
        )
        query = query * attn.scale
        totals = torch.einsum("bpnd,btnd->bnpt", query, key).logsumexp(dim=3)
        side = (isqrt(hidden.shape[1]),) * 2
        self._seen[name] = (
            query.permute(0, 2, 3, 1).unflatten(3, side)[:, None],
            totals.unflatten(2, side)[:, None],
        )

    def _keys_of(self, name: str) -> Tensor:
        """Return what makes keys of text, float32; the same tensor as long as the weight is."""
        attn = self._layers[name]
        weight = attn.to_k.weight
        version = 0 if weight.is_inference() else weight._version
        state = (weight.device, weight.dtype, version)
        of, then, keys = self._keys.get(name, (None, None, None))
        if of is not weight or then != state:
            with torch.inference_mode(False):  # a training may ask for them after a validation
                keys = weight.float().unflatten(0, (attn.heads, -1))
                keys = keys.clone() if keys.is_inference() else keys
            self._keys[name] = weight, state, keys
        return keys

    def forget(self) -> None:
        """Drop the copies of weights."""
        self._keys = {}


def stack_probes(calls: Sequence[dict[str, Probe]]) -> dict[str, Probe]:
    """Put the probes of S calls together, in the order of the calls."""
    return {
        name: Probe(
            torch.cat([call[name].queries for call in calls], dim=1),
            torch.cat([call[name].totals for call in calls], dim=1),
            first.keys,
        )
        for name, first in calls[0].items()
    }


def measure_probes(meta: Meta, recorder: ProbeRecorder, image_size: int) -> dict[str, TapSpec]:
    """Find heads and stride of each cross-attention layer without weights; see `measure_taps`.

    Returns:
        ``{attn2 module: TapSpec(heads, stride, width)}`` in network order.
    """
    with recorder.recording(1) as probes:
        meta[1]()
    shapes = {name: probe.queries.shape for name, probe in probes.items()}
    return {
        name: TapSpec(shape[2], image_size // shape[-1], shape[3]) for name, shape in shapes.items()
    }
