"""Tiny randomly initialised pipelines of every family of text-to-image models, by diffusers."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import tiny_captions, train_tokenizer

SIDE = 16
"""Height and width of the latents; images are four times as large."""


def clip(tokenizer, kind: str, hidden: int = 32):
    """Return a CLIP text encoder whose names differ clearly though nothing was trained."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        projection_dim=hidden,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=4.0,
    )
    return getattr(transformers, kind)(config)


def t5(width: int = 64):
    """Return a T5 encoder and its tokenizer."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    tokenizer = T5Tokenizer(extra_ids=0).train_new_from_iterator(tiny_captions(), 300)
    tokenizer.model_max_length = 32
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=2
    )
    return T5EncoderModel(config), tokenizer


def vae(channels: int = 4, **more):
    """Return an autoencoder of stride 4."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=4 * SIDE,
        **more,
    )


def unet(**more):
    """Return a U-Net of two resolutions, attention in the lower one."""
    from diffusers import UNet2DConditionModel

    sizes = {
        "sample_size": SIDE,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**sizes | more)


def sdxl():
    """SDXL: two text encoders and added conditions."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer = train_tokenizer(tiny_captions())
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025, force_upcast=False),
        text_encoder=clip(tokenizer, "CLIPTextModel", 16),
        text_encoder_2=clip(tokenizer, "CLIPTextModelWithProjection", 32),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(
            cross_attention_dim=48,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    )


def plain(scheduler, **more):
    """Stable Diffusion 1 or 2 with a scheduler of its own."""
    from diffusers import StableDiffusionPipeline

    tokenizer = train_tokenizer(tiny_captions())
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(tokenizer, "CLIPTextModel"),
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=32, **more),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd1():
    """Stable Diffusion 1 in miniature: its 25 blocks, 512x512 images, latents of 64x64."""
    from diffusers import AutoencoderKL, DDIMScheduler

    pipeline = plain(
        DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False),
        sample_size=64,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
    )
    pipeline.register_modules(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=512,
        )
    )
    return pipeline


def sd2():
    """Stable Diffusion 2: the U-Net predicts velocities."""
    from diffusers import DDIMScheduler

    return plain(DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False))


def lcm():
    """A latent consistency model: told its guidance, and stochastic between its steps."""
    from diffusers import LCMScheduler

    return plain(LCMScheduler(beta_schedule="scaled_linear", steps_offset=1), time_cond_proj_dim=16)


def sd3(t5_too: bool = True):
    """SD3.5: three text encoders, a joint transformer with normalised queries, flow matching."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    tokenizer = train_tokenizer(tiny_captions())
    third = t5() if t5_too else (None, None)
    return StableDiffusion3Pipeline(
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(tokenizer, "CLIPTextModelWithProjection", 16),
        text_encoder_2=clip(tokenizer, "CLIPTextModelWithProjection", 32),
        text_encoder_3=third[0],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=third[1],
        transformer=SD3Transformer2DModel(
            sample_size=SIDE,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=48,
            pos_embed_max_size=SIDE,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def sd3_without_t5():
    """SD3 with zeros in T5's place."""
    return sd3(t5_too=False)


def flux(guidance: bool = True):
    """FLUX.1: packed latents, rotary positions, guidance as an input."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer = train_tokenizer(tiny_captions())
    second = t5()
    return FluxPipeline(
        vae=vae(shift_factor=0.1, scaling_factor=0.4),
        text_encoder=clip(tokenizer, "CLIPTextModel"),
        text_encoder_2=second[0],
        tokenizer=tokenizer,
        tokenizer_2=second[1],
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            pooled_projection_dim=32,
            guidance_embeds=guidance,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance),
    )


def schnell():
    """FLUX.1 schnell: no guidance at all."""
    return flux(guidance=False)


def save(make, folder: Path) -> str:
    """Save a tiny pipeline, always the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make().save_pretrained(folder, safe_serialization=True)
    return str(folder)
