"""The grounding module of Li et al., "Open-vocabulary Object Segmentation with Diffusion Models".

ICCV 2023 (arXiv 2301.05221), section 3.2. Two linear operations are taken in the cheaper order,
with equal results: 1x1 convolutions come before the bilinear resizing that they commute with, and
the dot product with the mask embeddings comes before the upsampling to image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu, scaled_dot_product_attention
from torch.nn.utils.parametrizations import spectral_norm

from ovseg.grounders.base import Grounder, check_features
from ovseg.grounders.maps import groups_by_stride, resize
from ovseg.structures import Entities, Features, FeatureSpec


class Projection(nn.Conv2d):
    """A 1x1 convolution without bias over the channels of several maps, never concatenated."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__(sum(channels), width, kernel_size=1, bias=False)
        self.channels = list(channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map ``(B, S, G, C, h, w)`` each, C of each its own, to ``(B, width, h, w)``."""
        weights = self.weight.split(self.channels, dim=1)
        parts = (conv2d(m.flatten(1, 3), w) for m, w in zip(maps, weights, strict=True))
        return reduce(torch.add, parts)


NORMS = {
    "batch": partial(nn.BatchNorm2d, eps=1e-4, momentum=0.1, affine=False),
    "instance": partial(nn.InstanceNorm2d, eps=1e-4, affine=False),
}


class SegBlock(nn.Module):
    """Two spectrally normalised 3x3 convolutions around a rectified skip."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = NORMS[norm](width), NORMS[norm](width)
        self.conv1 = spectral_norm(nn.Conv2d(width, width, 3, padding=1), eps=1e-4)
        self.conv2 = spectral_norm(nn.Conv2d(width, width, 3, padding=1), eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.norm1(x))
        return x + self.conv2(relu(self.norm2(self.conv1(x))))


class Attention(nn.Module):
    """Multi-head attention without bias."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, D / heads)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from ``(B, K, D)`` to ``(B, T, D)``; ``mask (B, 1, K, T)`` is True where seen."""
        query, key = self._split(self.query(x)), self._split(self.key(memory))
        value = self._split(self.value(memory))
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(found.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """A pre-norm transformer decoder layer; the memory is not normalised."""

    def __init__(self, hidden: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.norm1, self.self_attention = nn.LayerNorm(hidden), Attention(hidden, heads)
        self.norm2, self.cross_attention = nn.LayerNorm(hidden), Attention(hidden, heads)
        self.norm3 = nn.LayerNorm(hidden)
        self.linear1, self.linear2 = nn.Linear(hidden, ffn), nn.Linear(ffn, hidden)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attention(normed, normed, mask)
        x = x + self.cross_attention(self.norm2(x), memory)
        return x + self.linear2(relu(self.linear1(self.norm3(x))))


class FusionGrounder(Grounder):
    """A convolutional pyramid over the taps, a transformer decoder over the names, a dot product.

    The taps are grouped by stride; each group is projected to its width, and the groups are merged
    from coarse to fine. The defaults are the paper's for Stable Diffusion 1.x (`SD1_TAPS`): with
    both guidance branches the module then has 18,796,560 parameters.

    Args:
        feature_spec: What the backbone's features look like.
        text_width: Width of the name embeddings.
        widths: Channels of each group, coarsest first.
        patch: Side of the square patches of the finest map that become tokens.
        layers: Decoder layers.
        hidden: Width of the decoder.
        heads: Attention heads.
        ffn: Width of the decoder's feed-forward layers.
        norm: "batch", with stored statistics at test, or "instance", the statistics of each image,
            as in the authors' released test code, which never left training mode.

    Raises:
        ValueError: If there are not as many widths as groups, ``heads`` does not divide ``hidden``,
            or the norm is unknown.
    """

    def __init__(
        self,
        feature_spec: FeatureSpec,
        text_width: int,
        widths: tuple[int, ...] = (16, 32, 64, 128),
        patch: int = 4,
        layers: int = 3,
        hidden: int = 512,
        heads: int = 8,
        ffn: int = 2048,
        norm: str = "batch",
    ) -> None:
        super().__init__(feature_spec, text_width)
        self.groups = groups_by_stride(feature_spec)
        strides = [feature_spec.taps[group[0]].stride for group in self.groups]
        if len(widths) != len(self.groups):
            raise ValueError(
                f"widths needs one number per group of taps, coarsest first: the strides are "
                f"{strides}, got widths {list(widths)}"
            )
        if min(*widths, patch, layers, hidden, heads, ffn) < 1 or hidden % heads:
            raise ValueError(
                f"sizes must be >= 1 and hidden a multiple of heads, got {hidden=}, "
                f"{heads=}, {patch=}, {layers=}, {ffn=}, widths={list(widths)}"
            )
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        self.patch, self.stride, self.width = patch, strides[-1], sum(widths)
        per_map = feature_spec.steps * feature_spec.branches
        self.projections = nn.ModuleList(
            Projection([feature_spec.taps[tap].channels * per_map for tap in group], width)
            for group, width in zip(self.groups, widths, strict=True)
        )
        merged = [sum(widths[: i + 1]) for i in range(len(widths))]
        self.blocks = nn.ModuleList(SegBlock(width, norm) for width in merged[1:] or merged)
        self.to_key = nn.Linear(self.width * patch**2, hidden, bias=False)
        self.to_query = nn.Linear(text_width, hidden, bias=False)
        self.decoder = nn.ModuleList(DecoderLayer(hidden, heads, ffn) for _ in range(layers))
        self.head = nn.Sequential(
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, self.width),
        )

    def read(self, features: Features) -> Features:
        """Merge the taps."""
        return replace(features, merged=self.pyramid(features))

    def pyramid(self, features: Features) -> Tensor:
        """Merge the taps into one map ``(B, sum of widths, h, w)`` of the finest group's size."""
        check_features(self.feature_spec, features)
        groups = [[features.maps[tap] for tap in group] for group in self.groups]
        sizes = [group[0].shape[-2:] for group in groups]
        merged = None
        for i, (group, projection) in enumerate(zip(groups, self.projections, strict=True)):
            size = sizes[min(i + 1, len(sizes) - 1)]  # each group is merged one size up
            x = resize(projection(group), size)
            merged = x if merged is None else torch.cat([resize(merged, size), x], dim=1)
            if i > 0 or len(groups) == 1:
                merged = self.blocks[max(0, i - 1)](merged)
        return merged

    def tokens(self, pyramid: Tensor) -> Tensor:
        """Cut a map into patches and project them: ``(B, T, hidden)``.

        Raises:
            ValueError: If the map is no multiple of the patch.
        """
        if pyramid.shape[2] % self.patch or pyramid.shape[3] % self.patch:
            raise ValueError(
                f"the finest map, {tuple(pyramid.shape[2:])}, must be a multiple of patch = "
                f"{self.patch}"
            )
        weight = self.to_key.weight.unflatten(1, (self.width, self.patch, self.patch))
        return conv2d(pyramid, weight, stride=self.patch).flatten(2).transpose(1, 2)

    def embeddings(self, memory: Tensor, entities: Entities) -> Tensor:
        """Turn names into mask embeddings ``(B, K, sum of widths)``."""
        count = entities.valid.shape[1]
        itself = torch.eye(count, dtype=torch.bool, device=memory.device)
        # padding sees itself, so that a row without any name has something to attend to
        mask = entities.valid[:, None, None, :] | itself
        x = self.to_query(entities.text)
        for layer in self.decoder:
            x = layer(x, memory, mask)
        return self.head(x)

    def forward(self, features: Features, entities: Entities) -> Tensor:
        """Return logits ``(B, K, H, W)`` at image size."""
        pyramid = self.pyramid(features) if features.merged is None else features.merged
        embeddings = self.embeddings(self.tokens(pyramid), entities)
        logits = torch.einsum("bchw,bkc->bkhw", pyramid, embeddings)
        height, width = pyramid.shape[2:]
        return resize(logits, (height * self.stride, width * self.stride))
