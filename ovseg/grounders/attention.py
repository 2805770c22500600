"""Cross-attention as masks, without any training: the baseline.

The idea is DAAM's: Tang et al., "What the DAAM: Interpreting Stable Diffusion Using Cross
Attention", ACL 2023 (arXiv 2210.04885).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ovseg.grounders.base import Grounder
from ovseg.grounders.maps import resize
from ovseg.structures import Entities, Features, FeatureSpec


class AttentionGrounder(Grounder):
    """Take each name's cross-attention map, stretched to [0, 1], as the probability of its mask.

    The backbone has to collect attention (``UNetBackbone(attention=...)``). A name that is not in
    the prompt has no map, and its probability is 0 everywhere.

    Args:
        feature_spec: What the backbone's features look like: how large an image is.
        text_width: Width of the name embeddings; unused.
        threshold: Probability from which a pixel belongs to the entity.

    Raises:
        ValueError: If the threshold is not inside (0, 1).
    """

    reads_names = False  # the prompt's own tokens
    reads_attention = True

    def __init__(self, feature_spec: FeatureSpec, text_width: int, threshold: float = 0.5) -> None:
        super().__init__(feature_spec, text_width)
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be inside (0, 1), got {threshold}")
        self.threshold = threshold

    def forward(self, features: Features, entities: Entities) -> Tensor:
        """Return logits ``(B, K, H, W)``: maps are resized to the image first, as in DAAM.

        Raises:
            ValueError: If the backbone collected no attention.
        """
        if features.attention is None:
            raise ValueError(
                "the backbone collected no cross-attention; name the layers to read, e.g. "
                "UNetBackbone(attention=('up_blocks.1',))"
            )
        maps = resize(features.attention.float(), self._image_size(features))
        low = maps.amin(dim=(2, 3), keepdim=True)
        high = maps.amax(dim=(2, 3), keepdim=True)
        probability = (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
        return torch.logit(probability, eps=1e-6)

    def _image_size(self, features: Features) -> tuple[int, int]:
        """Return the image's height and width, as the finest tap tells it."""
        name, tap = min(self.feature_spec.taps.items(), key=lambda item: item[1].stride)
        height, width = features.maps[name].shape[-2:]
        return height * tap.stride, width * tap.stride
