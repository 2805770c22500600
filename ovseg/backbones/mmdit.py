"""Pipelines of diffusers with a multimodal transformer: Stable Diffusion 3 and 3.5, FLUX."""

from __future__ import annotations

from functools import cached_property
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovseg.backbones.common import DiffusersBackbone
from ovseg.backbones.config import PipelineConfig
from ovseg.backbones.encoders import Encoded, FluxText, SD3Text, TextEncoders
from ovseg.backbones.files import PipelineFiles, quiet
from ovseg.backbones.joint_attention import JointAttentionCapture
from ovseg.backbones.reader import FeatureReader
from ovseg.backbones.taps import Meta, TapRecorder, measure_taps
from ovseg.structures import TapSpec

FLUX = "FluxTransformer2DModel"


class MMDiTConfig(PipelineConfig):
    """Sizes of a pipeline with a multimodal transformer."""

    PART = "transformer"
    KINDS = "MMDiTBackbone takes pipelines with a multimodal transformer (SD3, SD3.5, FLUX)"

    @cached_property
    def flux(self) -> bool:
        """Whether it is FLUX: packed latents, rotary positions, T5 alone for the tokens."""
        return self.denoiser["_class_name"] == FLUX

    @property
    def patch(self) -> int:
        """Latent pixels per token, along a side."""
        return 2 if self.flux else self.denoiser["patch_size"]

    @property
    def own_size(self) -> int:
        return (128 if self.flux else self.denoiser["sample_size"]) * self.stride

    @property
    def grain(self) -> int:
        return self.stride * self.patch

    @property
    def text_width(self) -> int:
        if self.flux:
            return self.width_of("text_encoder_2")
        return self.width_of("text_encoder") + self.width_of("text_encoder_2")

    @property
    def tokens(self) -> int:
        """Length of an image in tokens."""
        return (self.latent_size // self.patch) ** 2

    @property
    def embeds_guidance(self) -> bool:
        return self.flux

    def course(self, steps: int, scheduler: Any) -> dict:
        told: dict[str, Any] = {"num_inference_steps": steps}
        if self.flux and "FlowMatch" in scheduler.get("_class_name", "FlowMatch"):
            told = {"sigmas": np.linspace(1.0, 1 / steps, steps).tolist()}
        if scheduler.get("use_dynamic_shifting"):  # longer images want more noise
            short = scheduler.get("base_image_seq_len", 256)
            long = scheduler.get("max_image_seq_len", 4096)
            low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
            told["mu"] = low + (high - low) * (self.tokens - short) / (long - short)
        return told

    def meta(self) -> Meta:
        """Build the transformer without weights."""
        import diffusers

        config = self.denoiser
        with torch.device("meta"), quiet():
            network = getattr(diffusers, config["_class_name"]).from_config(config)
            text = torch.empty(1, 1, config["joint_attention_dim"])
            pooled, time = torch.empty(1, config["pooled_projection_dim"]), torch.empty(1)
            told = {"encoder_hidden_states": text, "pooled_projections": pooled}
            latent = torch.empty(1, *self.latent_shape)
            if self.flux:
                latent = pack(latent)
                told |= {"img_ids": torch.empty(self.tokens, 3), "txt_ids": torch.empty(1, 3)}
                told |= {"guidance": torch.empty(1)} if config["guidance_embeds"] else {}

        @torch.no_grad()
        def run() -> None:
            network(hidden_states=latent, timestep=time, **told, return_dict=False)

        return network, run

    def measure(
        self, taps: list[str], probes: tuple[str, ...] = ()
    ) -> tuple[dict[str, TapSpec], dict[str, TapSpec]]:
        meta = self.meta()
        return measure_taps(meta, TapRecorder(meta[0], taps, image_map), self.image_size), {}


def encoders(files: PipelineFiles) -> TextEncoders:
    """Return the text encoders of SD3 or FLUX, without weights yet."""
    flux = files.config("transformer/config.json").get("_class_name") == FLUX
    return (FluxText if flux else SD3Text)(files)


class MMDiTBackbone(DiffusersBackbone):
    """A frozen pipeline with a multimodal transformer: Stable Diffusion 3 and 3.5, FLUX.

    Taps are its blocks (``transformer_blocks.5``, FLUX's ``single_transformer_blocks.20`` too);
    of their two streams the image's is read. It has no probes: its text tokens change from block to
    block, so no block can be asked for another name.

    Args:
        model: A folder in diffusers' format or a Hub id.
        taps: Names of blocks whose outputs are the features.
        **options: See `ConfiguredBackbone`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    CONFIG = MMDiTConfig
    TEXT = staticmethod(encoders)
    config: MMDiTConfig

    def __init__(self, model: str, taps: list[str], **options: Any) -> None:
        super().__init__(model, taps, **options)

    def reader(self) -> FeatureReader:
        network, spec = self.denoiser, self.feature_spec
        capture = JointAttentionCapture(network, self.attention) if self.attention else None
        taps = TapRecorder(network, list(spec.taps), image_map)
        return FeatureReader(self.denoise, spec, taps, capture=capture)

    def denoise(self, latents: Tensor, timestep: Tensor, condition: dict) -> Tensor:
        count, side = len(latents), latents.shape[-1]
        time = timestep.expand(count)
        if self.config.flux:  # rounded, as by diffusers' own pipeline; SD3's is not
            latents, time = pack(latents), time.to(self.dtype) / 1000
        output = self.denoiser(
            hidden_states=latents, timestep=time, **condition, return_dict=False
        )[0]
        return unpack(output, side) if self.config.flux else output

    def condition(self, text: Encoded) -> dict:
        told = {"encoder_hidden_states": text.states, "pooled_projections": text.pooled}
        if not self.config.flux:
            return told
        side = self.config.latent_size // self.config.patch
        rows = torch.arange(side, device=self.device, dtype=self.dtype)
        places = torch.stack(torch.meshgrid(rows, rows, indexing="ij"), dim=2).flatten(0, 1)
        told["img_ids"] = torch.nn.functional.pad(places, (1, 0))
        told["txt_ids"] = places.new_zeros(text.states.shape[1], 3)
        if self.config.denoiser["guidance_embeds"]:
            scale = torch.full((len(text.states),), self.guidance_scale, dtype=torch.float32)
            told["guidance"] = scale.to(self.device)
        return told


def image_map(output: tuple[Tensor, Tensor]) -> Tensor:
    """Turn a block's image tokens ``(B, h * w, C)``, its second output, into a map."""
    tokens = output[1]
    side = isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def pack(latents: Tensor) -> Tensor:
    """Cut latents ``(B, C, h, w)`` into patches of 2x2: ``(B, h / 2 * w / 2, 4 C)``."""
    patches = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, h/2, 2, w/2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3, 5).flatten(1, 2)


def unpack(tokens: Tensor, side: int) -> Tensor:
    """Undo `pack`."""
    patches = tokens.unflatten(1, (side // 2, side // 2)).unflatten(3, (-1, 2, 2))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
