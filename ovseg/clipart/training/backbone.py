"""A segmenter's ResNet, trained on scenes and captions against the frozen text encoder.

What ImageNet's weights are to a full-size segmenter: it has seen every noun, and no mask.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from ovseg.clipart.training.loop import first_process_first, train
from ovseg.clipart.training.text import Contrast, captioned, tokenize
from ovseg.segmenters.mmseg import IMAGENET_MEAN, IMAGENET_STD, MMSegSegmenter


class Tower(nn.Module):
    """The backbone of an mmseg model as an image encoder.

    Maps images ``(B, 3, 64, 64)`` in [-1, 1] to one embedding ``(B, width)`` and those of the
    patches of its last map ``(B, P, width)``.
    """

    def __init__(self, backbone: nn.Module, channels: int, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.patch, self.head = nn.Linear(channels, width), nn.Linear(2 * channels, width)
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("gain", (127.5 / std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((127.5 - mean) / std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.backbone(images * self.gain + self.shift)[-1]
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)
        return self.head(pooled), self.patch(maps.flatten(2).transpose(1, 2))


def segmenter_model() -> dict:
    """Return the mmseg model of stage 4's config."""
    path = files("ovseg") / "clipart" / "configs" / "4_segmenter.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config["model"]["init_args"]["segmenter"]["init_args"]["model"]


def train_backbone(
    folder: Path, out: Path, seed: int, device: str, steps: int = 2000, batch: int = 64
) -> None:
    """Train and save ``out/backbone.safetensors``."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder")
    torch.manual_seed(seed)
    nn.init.normal_(text.text_projection.weight, std=text.config.hidden_size**-0.5)  # not kept
    text.text_model.requires_grad_(False)
    model = segmenter_model()
    width, channels = text.config.projection_dim, model["decode_head"]["in_channels"]
    tower = Tower(MMSegSegmenter(21, model=model).model.backbone, channels, width)
    contrast = Contrast(text, tower, width).to(device)

    def loss(step: int) -> Tensor:
        images, texts = captioned(seed + 500, step * batch, batch)
        ids = tokenize(tokenizer, texts).to(device)
        return contrast(images.to(device), ids, tokenizer.eos_token_id)

    trained = train(
        "backbone", contrast, loss, steps=steps, lr=2e-3, muon=True, out=out, weight_decay=0.02
    )
    state = trained.vision.backbone.state_dict()
    with first_process_first() as first:
        if first:
            state = {k: v.cpu().contiguous() for k, v in state.items()}
            save_file(state, out / "backbone.safetensors")
