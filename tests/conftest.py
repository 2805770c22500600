"""Fixtures shared by the tests: a tiny text-to-image model with its own trained tokenizer."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from ovseg.vocabulary import Vocabulary


def tiny_captions() -> list[str]:
    """Return captions with every name and synonym of the clip-art vocabulary."""
    classes = Vocabulary.load("clipart").classes
    words = [f"{c.article} {word}" for c in classes for word in (c.name, *c.synonyms)]
    openings = ("a photo of", "a photograph of", "a picture of")
    return [f"{opening} {word}" for opening, word in product(openings, words)] + [
        f"a photo of {one} and {other}" for one, other in zip(words, reversed(words), strict=True)
    ]


def train_tokenizer(captions: list[str], max_length: int = 32):
    """Train a CLIP tokenizer that knows every byte, so that no piece is ever unknown."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    trained = CLIPTokenizer(model_max_length=max_length).train_new_from_iterator(captions, 400)
    merges = [tuple(m) for m in _state(trained)["merges"]]
    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{c}</w>" for c in alphabet), *(a + b for a, b in merges)]
    pieces = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def _state(tokenizer) -> dict:
    import json

    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]


def build_tiny_pipeline(folder: Path, size: int = 64) -> Path:
    """Save a randomly initialised StableDiffusionPipeline of ``size`` pixels, latents a quarter."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = train_tokenizer(tiny_captions())
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=4.0,  # so that names differ clearly though nothing was trained
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=size // 4,
            block_out_channels=(16, 24, 32),
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=size,
        )
        text_encoder = CLIPTextModel(text)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory) -> str:
    """Folder of a random text-to-image model: 64x64 images, latents 4x16x16, text width 32."""
    return str(build_tiny_pipeline(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def tiny_grounder(tiny_pipeline, tmp_path_factory) -> Path:
    """Folder of a random grounder of the tiny model."""
    from ovseg.backbones.unet import UNetBackbone
    from ovseg.grounders.folder import save_grounder
    from ovseg.grounders.fusion import FusionGrounder

    taps = ["down_blocks.0.attentions.0", "down_blocks.1.attentions.0"]
    backbone = UNetBackbone(tiny_pipeline, taps, steps=2)
    sizes = {"widths": (2, 3), "patch": 2, "layers": 1, "hidden": 16, "heads": 2, "ffn": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        grounder = FusionGrounder(backbone.feature_spec, backbone.text_width, **sizes)
    grounder.threshold = 0.48
    path = tmp_path_factory.mktemp("models") / "grounder"
    save_grounder(grounder, path, backbone, Vocabulary.load("clipart"))
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a Hub without network, in a folder."""
    from fake_hub import FakeHub, install

    return install(FakeHub(tmp_path / "hub"), monkeypatch)
