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
from ovseg.clipart.training.loop import first_process_first, train

MAX_LENGTH = 24
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(folder: Path, seed: int = 0, captions: int = 4000) -> CLIPTokenizer:
    """Train CLIP's byte-pair tokenizer on captions and save it; every byte stays known."""
    symbols = list(bytes_to_unicode().values())
    alphabet = [*symbols, *(s + "</w>" for s in symbols)]
    seedling = _tokenizer(folder, [START, END, *alphabet], [])
    trained = seedling.train_new_from_iterator(
        corpus(seed, captions), vocab_size=1600, initial_alphabet=symbols
    )
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    known = sorted(model["vocab"], key=model["vocab"].get)
    known += [s for s in alphabet if s not in model["vocab"]]  # it drops those it never saw
    return _tokenizer(folder, known, [" ".join(pair) for pair in model["merges"]])


def _tokenizer(folder: Path, tokens: list[str], merges: list[str]) -> CLIPTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("tokenizer*.json"):
        old.unlink()
    vocab = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return token ids ``(B, 24)`` int64."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    ).input_ids


def captioned(seed: int, start: int, count: int) -> tuple[Tensor, list[str]]:
    """Draw scenes ``(count, 3, 64, 64)`` in [-1, 1] and a caption of each."""
    scenes = [draw_scene(seed, start + i) for i in range(count)]
    images = torch.stack([torch.from_numpy(render(scene)[0]) for scene in scenes])
    texts = [caption(rng(seed + 1, start + i), scene) for i, scene in enumerate(scenes)]
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1, texts


class VisionTower(nn.Module):
    """A small convolutional image encoder.

    Maps images ``(B, 3, 64, 64)`` in [-1, 1] to one embedding ``(B, width)`` and those of 8x8
    patches ``(B, 64, width)``.
    """

    def __init__(self, width: int, channels: tuple[int, ...] = (16, 48, 96)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for c in channels:
            layers += [nn.Conv2d(previous, c, 3, 2, 1), nn.GroupNorm(8, c), nn.SiLU()]
            layers += [nn.Conv2d(c, c, 3, 1, 1), nn.GroupNorm(8, c), nn.SiLU()]
            previous = c
        self.body = nn.Sequential(*layers)
        self.patch = nn.Linear(previous, width)
        self.deep = nn.Sequential(
            nn.Conv2d(previous, 128, 3, 2, 1), nn.GroupNorm(8, 128), nn.SiLU()
        )
        self.head = nn.Linear(256, width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.body(images)
        deep = self.deep(maps)
        pooled = torch.cat([deep.mean((2, 3)), deep.amax((2, 3))], dim=1)
        return self.head(pooled), self.patch(maps.flatten(2).transpose(1, 2))


class Contrast(nn.Module):
    """Text and vision tower under two contrastive losses.

    CLIP's between whole images and whole captions (Radford et al. 2021), and FILIP's between
    patches and words (Yao et al. 2022), so that the hidden state of a word says what it names.
    """

    def __init__(self, text: CLIPTextModelWithProjection, vision: nn.Module, width: int) -> None:
        super().__init__()
        self.text, self.vision = text, vision
        self.word = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor([2.5, 2.5]))

    def forward(self, images: Tensor, ids: Tensor, end: int) -> Tensor:
        whole, patches = (F.normalize(v, dim=-1) for v in self.vision(images))
        output = self.text(input_ids=ids)
        caption_of = F.normalize(output.text_embeds, dim=-1)
        words = F.normalize(self.word(output.last_hidden_state), dim=-1)
        real = (ids != end).float()
        real[:, 0] = 0  # the start says nothing
        fit = torch.einsum("ipd,jwd->ijwp", patches, words).amax(dim=3)
        fine = (fit * real).sum(2) / real.sum(1)
        scale = self.scale.clamp(max=4.0).exp()
        return sum(_symmetric(s) for s in (scale[0] * whole @ caption_of.T, scale[1] * fine))


def _symmetric(logits: Tensor) -> Tensor:
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_text(
    folder: Path, out: Path, seed: int, device: str, steps: int = 1400, batch: int = 64
) -> None:
    """Train and save ``folder/tokenizer`` and ``folder/text_encoder`` (a CLIPTextModel)."""
    with first_process_first() as first:
        if first:
            train_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
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
    width = config.projection_dim
    model = Contrast(CLIPTextModelWithProjection(config), VisionTower(width), width).to(device)

    def loss(step: int) -> Tensor:
        images, texts = captioned(seed + 100, step * batch, batch)
        ids = tokenize(tokenizer, texts).to(device)
        return model(images.to(device), ids, tokenizer.eos_token_id)

    train("text", model, loss, steps=steps, lr=2e-3, out=out, weight_decay=0.02)
    encoder = CLIPTextModel(config)
    trained = model.text.state_dict()
    encoder.load_state_dict({k: trained[_find(trained, k)] for k in encoder.state_dict()})
    with first_process_first() as first:
        if first:
            encoder.save_pretrained(folder / "text_encoder", safe_serialization=True)


def _find(state: dict, key: str) -> str:
    """Return the name of ``key`` in a state with or without the "text_model." prefix."""
    names = (key, f"text_model.{key}", key.removeprefix("text_model."))
    return next(name for name in names if name in state)
