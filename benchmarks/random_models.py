"""Pipelines of real geometry with random weights: what costs time and memory, without a download.

Sizes are those of the models' own config.json files, weights are bfloat16, and the tokenizer is
that of the clip-art world, whose sentences are padded to CLIP's 77 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from ovseg.backbones.files import quiet
from ovseg.embedded import EMBEDDED, locate

NOISE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}


def clip_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer of 77 tokens."""
    folder = locate(EMBEDDED, "pipeline") / "tokenizer"
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def clip_large(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return the text encoder of CLIP ViT-L/14."""
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_attention_heads=12,
            projection_dim=768,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def clip_huge(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Return the text encoder of OpenCLIP ViT-bigG/14."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=20,
            projection_dim=1280,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def vae(size: int, **more: Any) -> AutoencoderKL:
    """Return the autoencoder of Stable Diffusion 1, 2 and XL."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=size,
        **more,
    )


def sd15() -> StableDiffusionPipeline:
    """Return Stable Diffusion 1.5: 512x512 pixels."""
    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=vae(512),
        text_encoder=clip_large(tokenizer),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> StableDiffusionXLPipeline:
    """Return SDXL base 1.0: 1024x1024 pixels."""
    tokenizer = clip_tokenizer()
    return StableDiffusionXLPipeline(
        vae=vae(1024, scaling_factor=0.13025, force_upcast=True),
        text_encoder=clip_large(tokenizer),
        text_encoder_2=clip_huge(tokenizer),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        scheduler=EulerDiscreteScheduler(**NOISE),
        add_watermarker=False,
    )


MODELS: dict[str, Callable[[], DiffusionPipeline]] = {"sd15": sd15, "sdxl": sdxl}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create floating-point tensors in a dtype while the context lasts."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def save(make: Callable[[], DiffusionPipeline], folder: Path) -> str:
    """Save a pipeline with random bfloat16 weights, always the same ones, as safetensors."""
    with torch.random.fork_rng(devices=[]), default_dtype(torch.bfloat16), quiet():
        torch.manual_seed(0)
        make().save_pretrained(folder, safe_serialization=True)
    return str(folder)
