"""Joint attention of a multimodal transformer: which image tokens looked at which words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ovseg.backbones.attention import AttentionCapture

ROWS = 1024
"""Image tokens whose attention is in memory at a time, one head of it."""


def joint_attention(network: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    """Return the attention modules of blocks that keep image and text apart.

    Raises:
        ValueError: If a name is no such block; lists those there are.
    """
    found = {
        name: module.attn
        for name, module in network.named_modules()
        if getattr(getattr(module, "attn", None), "add_k_proj", None) is not None
    }
    unknown = [layer for layer in layers if layer not in found]
    if unknown:
        raise ValueError(
            f"no joint attention in {', '.join(map(repr, unknown))}; choose among "
            f"{', '.join(found)}"
        )
    return {layer: found[layer] for layer in layers}


class JointAttentionCapture(AttentionCapture):
    """Mean attention from image tokens to each entity's tokens; see `AttentionCapture`."""

    find = staticmethod(joint_attention)

    def scores(
        self,
        attn: nn.Module,
        hidden: Tensor,
        text: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        **_: Any,
    ) -> Tensor:
        """Return how much each image token looked at each text token, ``(B, h * w, T)``."""
        query = _heads(attn, attn.to_q(hidden), attn.norm_q)
        keys = [
            _heads(attn, attn.add_k_proj(text), attn.norm_added_k),
            _heads(attn, attn.to_k(hidden), attn.norm_k),
        ]
        if image_rotary_emb is not None:
            from diffusers.models.embeddings import apply_rotary_emb

            words, pixels = (
                tuple(part[rows] for part in image_rotary_emb)
                for rows in (slice(text.shape[1]), slice(text.shape[1], None))
            )
            query = apply_rotary_emb(query, pixels, sequence_dim=1)
            keys = [
                apply_rotary_emb(key, places, sequence_dim=1)
                for key, places in zip(keys, (words, pixels), strict=True)
            ]
        key = torch.cat(keys, dim=1)
        total = query.new_zeros(*query.shape[:2], text.shape[1], dtype=torch.float32)
        for head in range(query.shape[2]):
            of_head = key[:, :, head].float().mT * query.shape[3] ** -0.5
            for start in range(0, query.shape[1], ROWS):
                rows = slice(start, start + ROWS)
                weights = (query[:, rows, head].float() @ of_head).softmax(dim=2)
                total[:, rows] += weights[:, :, : text.shape[1]]
        return total / query.shape[2]


def _heads(attn: nn.Module, x: Tensor, norm: nn.Module | None) -> Tensor:
    x = x.unflatten(2, (attn.heads, -1))
    return x if norm is None else norm(x)
