"""Cross-attention maps of a U-Net: which pixels looked at which words.

The idea is DAAM's: Tang et al., "What the DAAM: Interpreting Stable Diffusion Using Cross
Attention", ACL 2023 (arXiv 2210.04885).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


class _Watch:
    """An attention processor that shows each call to a capture and leaves its result alone."""

    def __init__(self, inner, capture: AttentionCapture) -> None:
        self.inner, self.capture = inner, capture

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        if self.capture.weights is not None and encoder_hidden_states is not None:
            self.capture.add(attn, hidden_states, encoder_hidden_states)
        return self.inner(
            attn,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **kwargs,
        )


class AttentionCapture:
    """Mean cross-attention of each entity's tokens over heads, layers and calls.

    Args:
        network: A U-Net of diffusers.
        layers: Names of ``attn2`` modules, or of blocks that hold some.

    Raises:
        ValueError: If a name holds no cross-attention; lists the blocks that do.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        found = {n: m for n, m in network.named_modules() if n.split(".")[-1] == "attn2"}
        chosen: dict[str, nn.Module] = {}
        for layer in layers:
            inside = {n: m for n, m in found.items() if f"{n}.".startswith(f"{layer}.")}
            if not inside:
                blocks = dict.fromkeys(n.split(".transformer_blocks")[0] for n in found)
                raise ValueError(
                    f"no cross-attention in {layer!r}; choose among {', '.join(blocks)}"
                )
            chosen.update(inside)
        for module in chosen.values():
            module.set_processor(_Watch(module.processor, self))
        self.weights: Tensor | None = None

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

    def add(self, attn: nn.Module, hidden: Tensor, text: Tensor) -> None:
        """Add one layer of one call; the conditional samples are the last B of the batch."""
        batch = len(self._tokens)
        hidden, text = hidden[-batch:], text[-batch:]
        query = attn.head_to_batch_dim(attn.to_q(hidden))
        key = attn.head_to_batch_dim(attn.to_k(text))
        scores = attn.get_attention_scores(query, key).float()
        scores = scores.unflatten(0, (batch, -1)).mean(dim=1)  # (B, h * w, T), mean over heads
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
        """Return the mean maps ``(B, K, size, size)`` float32.

        Raises:
            RuntimeError: If no watched layer was called.
        """
        if not self._count:
            raise RuntimeError("no cross-attention arrived: the chosen layers were not called")
        return self._sum / self._count
