"""The paper's grounding module in the order of operations of its released code, as a yardstick.

Li et al., ICCV 2023 (arXiv 2301.05221). Every map is concatenated and resized before its 1x1
convolution; the pyramid's result is upsampled to image size before the dot product with the mask
embeddings; patches are unfolded before they are projected. The only difference to that code is
that a batch is treated image by image, as it must be.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu, unfold
from torch.nn.utils.parametrizations import spectral_norm

from ovseg.grounders.fusion import FusionGrounder
from ovseg.structures import Entities, Features, FeatureSpec


class MixBlock(nn.Module):
    """BN, ReLU, convolution, BN, ReLU, convolution, skip; spectral norm on both convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = spectral_norm(nn.Conv2d(width, width, 3, padding=1), eps=1e-4)
        self.conv2 = spectral_norm(nn.Conv2d(width, width, 3, padding=1), eps=1e-4)
        self.bn1 = nn.BatchNorm2d(width, 1e-4, 0.1, affine=False)
        self.bn2 = nn.BatchNorm2d(width, 1e-4, 0.1, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        skip = nn.functional.relu_(self.bn1(x))
        return self.conv2(nn.functional.relu_(self.bn2(self.conv1(skip)))) + skip


class Layer(nn.Module):
    """Pre-norm decoder layer on torch's own multi-head attention."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        options = {"bias": False, "batch_first": True}
        self.self_attn = nn.MultiheadAttention(width, heads, **options)
        self.cross_attn = nn.MultiheadAttention(width, heads, **options)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.ffn = nn.Sequential(nn.Linear(width, ffn), nn.ReLU(), nn.Linear(ffn, width))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.self_attn(y, y, y)[0]
        x = x + self.cross_attn(self.norms[1](x), memory, memory)[0]
        return x + self.ffn(self.norms[2](x))


class LiteralFusion(nn.Module):
    """The four groups of Stable Diffusion 1.x, low (8 x 8) to highest (64 x 64).

    Args:
        feature_spec: Four groups of taps, strides halving.
        text_width: Width of the name embeddings.
    """

    def __init__(self, feature_spec: FeatureSpec, text_width: int = 768) -> None:
        super().__init__()
        strides = sorted({tap.stride for tap in feature_spec.taps.values()}, reverse=True)
        self.groups = [
            [name for name, tap in feature_spec.taps.items() if tap.stride == stride]
            for stride in strides
        ]
        inputs = [
            sum(feature_spec.taps[name].channels for name in group)
            * feature_spec.branches
            * feature_spec.steps
            for group in self.groups
        ]
        self.image_size_factor = strides[-1]
        low, mid, high, highest = inputs
        self.low_conv = nn.Conv2d(low, 16, 1, bias=False)
        self.mid_conv = nn.Conv2d(mid, 32, 1, bias=False)
        self.high_conv = nn.Conv2d(high, 64, 1, bias=False)
        self.highest_conv = nn.Conv2d(highest, 128, 1, bias=False)
        self.mid_mix, self.high_mix, self.highest_mix = MixBlock(48), MixBlock(112), MixBlock(240)
        self.to_k = nn.Linear(240 * 16, 512, bias=False)
        self.to_q = nn.Linear(text_width, 512, bias=False)
        self.layers = nn.ModuleList(Layer(512, 8, 2048) for _ in range(3))
        self.mlp = nn.ModuleList([nn.Linear(512, 512), nn.Linear(512, 512), nn.Linear(512, 240)])

    def forward(self, features: Features, entities: Entities) -> Tensor:
        low, mid, high, highest = (
            torch.cat([features.maps[name].flatten(1, 3) for name in group], dim=1)
            for group in self.groups
        )
        low = self.low_conv(_double(low))
        mid = self.mid_conv(_double(mid))
        high = self.high_conv(_double(high))
        highest = self.highest_conv(highest)
        x = self.mid_mix(torch.cat([_double(low), mid], dim=1))
        x = self.high_mix(torch.cat([_double(x), high], dim=1))
        x = self.highest_mix(torch.cat([x, highest], dim=1))
        memory = self.to_k(unfold(x, 4, stride=4).transpose(1, 2))
        query = self.to_q(entities.text)
        for layer in self.layers:
            query = layer(query, memory)
        for linear in self.mlp[:-1]:
            query = relu(linear(query))
        query = self.mlp[-1](query)
        scale = self.image_size_factor
        large = interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
        return torch.einsum("bkc,bchw->bkhw", query, large)


def _double(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@torch.no_grad()
def copy_weights(ours: FusionGrounder, literal: LiteralFusion) -> None:
    """Give the literal form the weights of ours."""
    convs = (literal.low_conv, literal.mid_conv, literal.high_conv, literal.highest_conv)
    for projection, conv in zip(ours.projections, convs, strict=True):
        conv.weight.copy_(projection.weight)
    mixes = (literal.mid_mix, literal.high_mix, literal.highest_mix)
    for block, mix in zip(ours.blocks, mixes, strict=True):
        mix.conv1.load_state_dict(block.conv1.state_dict())
        mix.conv2.load_state_dict(block.conv2.state_dict())
    literal.to_k.weight.copy_(ours.to_key.weight)
    literal.to_q.weight.copy_(ours.to_query.weight)
    for layer, other in zip(ours.decoder, literal.layers, strict=True):
        for own, target in (
            (layer.self_attention, other.self_attn),
            (layer.cross_attention, other.cross_attn),
        ):
            packed = [own.query.weight, own.key.weight, own.value.weight]
            target.in_proj_weight.copy_(torch.cat(packed))
            target.out_proj.weight.copy_(own.out.weight)
        for own, target in zip((layer.norm1, layer.norm2, layer.norm3), other.norms, strict=True):
            target.load_state_dict(own.state_dict())
        other.ffn[0].load_state_dict(layer.linear1.state_dict())
        other.ffn[2].load_state_dict(layer.linear2.state_dict())
    for own, target in zip(ours.head[::2], literal.mlp, strict=True):
        target.load_state_dict(own.state_dict())
