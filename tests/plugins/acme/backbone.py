"""A text-to-image model without a network: it paints one coloured box per entity."""

from __future__ import annotations

import colorsys
import hashlib
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ovseg.backbones.base import DiffusionBackbone
from ovseg.structures import DiffusionSample, Features, FeatureSpec, Request

TEXT_WIDTH = 8


def color_of(class_id: int) -> tuple[int, int, int]:
    """Return the RGB in which the toy paints a class; hues far apart for neighbouring ids."""
    value = 0.6 + 0.4 * (class_id % 2)
    red, green, blue = colorsys.hsv_to_rgb(class_id * 0.381966 % 1.0, 0.9, value)
    return round(255 * red), round(255 * green), round(255 * blue)


class ToyBackbone(DiffusionBackbone):
    """Paint boxes; latents are the image at a quarter of its size and one channel of noise.

    Args:
        size: Height and width of the images, a multiple of 8.
        forget: Share of entities that are left out of the picture.
        delay: Seconds that a call of `sample` takes at least.
    """

    def __init__(self, size: int = 32, forget: float = 0.0, delay: float = 0.0) -> None:
        super().__init__()
        if size < 8 or size % 8:
            raise ValueError(f"size must be a multiple of 8, got {size}")
        self.size, self.forget, self.delay = size, forget, delay
        weights = torch.Generator().manual_seed(0)
        self.register_buffer("fine", torch.randn(6, 4, generator=weights))
        self.register_buffer("coarse", torch.randn(10, 4, generator=weights))

    @property
    def feature_spec(self) -> FeatureSpec:
        return FeatureSpec({"fine": (6, 4), "coarse": (10, 8)}, steps=1, branches=1)

    @property
    def text_width(self) -> int:
        return TEXT_WIDTH

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"toy {self.size}".encode()).hexdigest()[:16]

    @property
    def timesteps(self) -> Tensor:
        return torch.tensor([1.0])

    def describe(self) -> dict:
        return {
            "model": "acme/toy",
            "revision": None,
            "licence": "CC0-1.0",
            "digest": self.digest,
            "taps": ["fine", "coarse"],
            "tap_steps": [1],
            "scheduler": None,
            "steps": 1,
            "guidance_scale": 1.0,
            "dtype": "float32",
        }

    def sample(self, requests: Sequence[Request]) -> DiffusionSample:
        time.sleep(self.delay)
        images = torch.stack([self._paint(request) for request in requests]).to(self.fine.device)
        latents = self.encode_image(images, requests)
        features = self.features(latents, self.timesteps, requests)
        entities = self.entities(requests)
        return DiffusionSample(list(requests), images, latents, self.timesteps, entities, features)

    def features(self, latents: Tensor, timesteps: Tensor, requests: Sequence[Request]) -> Features:
        fine = latents[:, 0].to(self.fine)
        coarse = avg_pool2d(fine, 2)
        maps = {
            "fine": torch.einsum("dc,bchw->bdhw", self.fine, fine),
            "coarse": torch.einsum("dc,bchw->bdhw", self.coarse, coarse),
        }
        colors = self.embed(requests)[:, :, :3, None, None]
        attention = torch.exp(-4 * (fine[:, None, :3] - colors).square().sum(2))
        return Features({tap: m[:, None, None] for tap, m in maps.items()}, attention)

    def encode_image(self, images: Tensor, requests: Sequence[Request]) -> Tensor:
        small = avg_pool2d(images.float(), 4) / 127.5 - 1
        noise = [
            torch.randn(1, *small.shape[2:], generator=torch.Generator().manual_seed(request.seed))
            for request in requests
        ]
        return torch.cat([small, torch.stack(noise).to(small)], dim=1)[:, None]

    def embed(self, requests: Sequence[Request]) -> Tensor:
        most = max((len(request.entities) for request in requests), default=0)
        text = torch.zeros(len(requests), max(most, 1), TEXT_WIDTH)
        for row, request in enumerate(requests):
            for column, entity in enumerate(request.entities):
                letters = hashlib.sha256(entity.name.encode()).digest()[: TEXT_WIDTH - 3]
                numbers = torch.tensor([*color_of(entity.class_id), *letters])
                text[row, column] = numbers / 127.5 - 1
        return text.to(self.fine.device)

    def _paint(self, request: Request) -> Tensor:
        """Return ``(3, size, size)`` uint8: one strip of the picture for each entity."""
        generator = torch.Generator().manual_seed(request.seed)
        shades = torch.randint(110, 140, (1, self.size, self.size), generator=generator)
        image = shades.expand(3, -1, -1).to(torch.uint8).clone()
        strips = torch.randperm(len(request.entities), generator=generator).tolist()
        width = self.size // max(len(strips), 1)
        for strip, entity in zip(strips, request.entities, strict=True):
            forgotten, top, side = torch.rand(3, generator=generator).tolist()
            if forgotten < self.forget:
                continue
            height = int(self.size * (0.4 + 0.4 * side))
            start = int(top * (self.size - height))
            left = strip * width + 1
            box = torch.tensor(color_of(entity.class_id), dtype=torch.uint8)[:, None, None]
            image[:, start : start + height, left : left + width - 2] = box
        return image
