"""Sizes of large models, from their own config.json files, without what only repeats a default."""

from __future__ import annotations

from ovseg.backbones.config import PipelineConfig
from ovseg.backbones.files import PipelineFiles
from ovseg.backbones.mmdit import MMDiTConfig
from ovseg.backbones.unet import UNetConfig

VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4}
WIDE_VAE = {**VAE, "latent_channels": 16}

SD15 = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SDXL = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "in_channels": 4,
    "layers_per_block": 2,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "use_linear_projection": True,
}
SD3 = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
CLIP_L = {"architectures": ["CLIPTextModel"], "hidden_size": 768}
CLIP_G = {"architectures": ["CLIPTextModelWithProjection"], "hidden_size": 1280}
CLIP_G |= {"projection_dim": 1280}
T5 = {"d_model": 4096}
MODELS = {
    "sd15": {"unet": SD15, "vae": VAE, "text_encoder": CLIP_L},
    "sdxl": {"unet": SDXL, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G},
    "sd3": {
        **{"transformer": SD3, "vae": WIDE_VAE, "text_encoder": CLIP_L},
        **{"text_encoder_2": CLIP_G, "text_encoder_3": T5},
    },
    "flux": {"transformer": FLUX, "vae": WIDE_VAE, "text_encoder": CLIP_L, "text_encoder_2": T5},
}


class Files(PipelineFiles):
    """The configuration files of a model that is not there."""

    def __init__(self, name: str) -> None:
        self.model, self._parts = name, MODELS[name]
        kinds = {part: facts.get("architectures", "X")[0] for part, facts in self._parts.items()}
        self.index = {"_class_name": name, **{part: ["x", kind] for part, kind in kinds.items()}}

    def has(self, part: str) -> bool:
        return part in self._parts

    def config(self, path: str) -> dict:
        return self._parts[path.removesuffix("/config.json")]


def geometry(name: str) -> PipelineConfig:
    """Return the sizes of "sd15", "sdxl", "sd3" or "flux"."""
    kind = MMDiTConfig if "transformer" in MODELS[name] else UNetConfig
    return kind(Files(name))
