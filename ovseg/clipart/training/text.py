"""Tokenizer and text encoder: contrastive with a small vision tower, then frozen."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ovseg.clipart.captions import caption, corpus, draw_scene
from ovseg.clipart.scenes import render, rng
from ovseg.clipart.training.loop import train

MAX_LENGTH = 24
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(folder: Path, seed: int = 0, captions: int = 4000) -> CLIPTokenizer:
    """Train CLIP's byte-pair tokenizer on captions and save it; every byte stays known."""
    symbols = list(bytes_to_unicode().values())
    alphabet = [*symbols, *(s + "</w>" for s in symbols), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    seed_vocab = {token: number for number, token in enumerate(alphabet)}
    (folder / "vocab.json").write_text(json.dumps(seed_vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    seedling = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH)
    tokenizer = seedling.train_new_from_iterator(
        corpus(seed, captions), vocab_size=1600, initial_alphabet=symbols
    )
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return token ids ``(B, 24)`` int64."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    ).input_ids


class VisionTower(nn.Module):
    """A small convolutional image encoder, ``(B, 3, 64, 64)`` in [-1, 1] -> ``(B, width)``."""

    def __init__(self, width: int, channels: tuple[int, ...] = (16, 48, 96, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for c in channels:
            layers += [nn.Conv2d(previous, c, 3, 2, 1), nn.GroupNorm(8, c), nn.SiLU()]
            layers += [nn.Conv2d(c, c, 3, 1, 1), nn.GroupNorm(8, c), nn.SiLU()]
            previous = c
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * previous, width)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(images)
        return self.head(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1))


class Contrast(nn.Module):
    """Text and vision tower under CLIP's symmetric loss (Radford et al. 2021)."""

    def __init__(self, text: CLIPTextModelWithProjection, width: int) -> None:
        super().__init__()
        self.text, self.vision = text, VisionTower(width)
        self.scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        a = F.normalize(self.vision(images), dim=-1)
        b = F.normalize(self.text(input_ids=ids).text_embeds, dim=-1)
        logits = self.scale.clamp(max=4.0).exp() * a @ b.T
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_text(
    folder: Path, out: Path, seed: int, device: str, steps: int = 2200, batch: int = 64
) -> None:
    """Train and save ``folder/tokenizer`` and ``folder/text_encoder`` (a CLIPTextModel)."""
    tokenizer = train_tokenizer(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = Contrast(CLIPTextModelWithProjection(config), config.projection_dim).to(device)

    def loss(step: int) -> Tensor:
        scenes = [draw_scene(seed + 100, step * batch + i) for i in range(batch)]
        images = torch.stack([torch.from_numpy(render(s)[0]) for s in scenes])
        texts = [caption(rng(seed + 101, step * batch + i), s) for i, s in enumerate(scenes)]
        pixels = images.permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
        return model(pixels, tokenize(tokenizer, texts).to(device))

    train("text", model, loss, steps=steps, lr=2e-3, out=out, weight_decay=0.02)
    encoder = CLIPTextModel(config)
    trained = model.text.state_dict()
    encoder.load_state_dict({k: trained[_find(trained, k)] for k in encoder.state_dict()})
    encoder.save_pretrained(folder / "text_encoder", safe_serialization=True)


def _find(state: dict, key: str) -> str:
    """Return the name of ``key`` in a state with or without the "text_model." prefix."""
    names = (key, f"text_model.{key}", key.removeprefix("text_model."))
    return next(name for name in names if name in state)
