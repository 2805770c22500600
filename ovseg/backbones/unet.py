"""Pipelines of diffusers with a U-Net: Stable Diffusion 1, 2, XL, their few-step kin, clip art."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ovseg.backbones.attention import AttentionCapture, ProbeRecorder, measure_probes
from ovseg.backbones.common import DiffusersBackbone
from ovseg.backbones.config import PipelineConfig
from ovseg.backbones.encoders import ClipText, Encoded, SDXLText
from ovseg.backbones.files import PipelineFiles, quiet
from ovseg.backbones.reader import FeatureReader
from ovseg.backbones.taps import Meta, TapRecorder, measure_taps
from ovseg.structures import TapSpec

SIZES = 6
"""Numbers that SDXL is told of the image: its size before and after cropping, and the corner."""


class UNetConfig(PipelineConfig):
    """Sizes of a pipeline with a U-Net and one or two CLIP encoders."""

    PART = "unet"
    KINDS = (
        "UNetBackbone takes pipelines with a U-Net and one or two text encoders (Stable Diffusion "
        "1, 2 and XL)"
    )

    @property
    def own_size(self) -> int:
        own = self.denoiser["sample_size"]
        return (own if isinstance(own, int) else own[0]) * self.stride

    @cached_property
    def two_encoders(self) -> bool:
        """Whether it is a pipeline like SDXL's."""
        return self.files.has("text_encoder_2")

    @cached_property
    def text_width(self) -> int:
        encoders = ("text_encoder", "text_encoder_2")[: 1 + self.two_encoders]
        return sum(map(self.width_of, encoders))

    @property
    def embeds_guidance(self) -> bool:
        return self.denoiser.get("time_cond_proj_dim") is not None

    def meta(self) -> Meta:
        """Build the U-Net without weights.

        Raises:
            ValueError: If it takes more than latents.
        """
        import diffusers

        config = self.denoiser
        takes, given = config.get("in_channels", 4), self.latent_shape[0]
        if takes != given:
            raise ValueError(
                f"the U-Net of the model {self.files.model!r} takes {takes} channels, its latents "
                f"have {given}: it paints or edits a given image; {self.KINDS}"
            )
        with torch.device("meta"), quiet():
            network = getattr(diffusers, config["_class_name"]).from_config(config)
            latent = torch.empty(1, *self.latent_shape)
            told: dict[str, Any] = {
                "encoder_hidden_states": torch.empty(1, 1, network.config.cross_attention_dim)
            }
            if self.two_encoders:
                width = config["projection_class_embeddings_input_dim"]
                width -= SIZES * config["addition_time_embed_dim"]
                added = {"text_embeds": torch.empty(1, width), "time_ids": torch.empty(1, SIZES)}
                told["added_cond_kwargs"] = added
            if self.embeds_guidance:
                told["timestep_cond"] = torch.empty(1, config["time_cond_proj_dim"])
            time = torch.empty(1)

        @torch.no_grad()
        def run() -> None:
            network(latent, time, **told, return_dict=False)

        return network, run

    def measure(
        self, taps: list[str], probes: tuple[str, ...] = ()
    ) -> tuple[dict[str, TapSpec], dict[str, TapSpec]]:
        meta = self.meta()
        found = measure_taps(meta, TapRecorder(meta[0], taps), self.image_size)
        if not probes:
            return found, {}
        return found, measure_probes(meta, ProbeRecorder(meta[0], probes), self.image_size)


def encoders(files: PipelineFiles) -> ClipText | SDXLText:
    """Return the text encoders of a pipeline with a U-Net, without weights yet."""
    return (SDXLText if files.has("text_encoder_2") else ClipText)(files)


class UNetBackbone(DiffusersBackbone):
    """A frozen pipeline with a U-Net: Stable Diffusion 1, 2, XL, LCM, Turbo, clip art.

    Args:
        model: A folder in diffusers' format, a Hub id, or "clipart", the embedded one.
        taps: Names of U-Net modules whose outputs are the features (`SD1_TAPS` for the paper's).
        probes: Cross-attention modules, named like those of ``attention``, that grounders can ask
            for any name (`Features.probes`), at the tapped calls.
        **options: See `DiffusersBackbone`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    CONFIG = UNetConfig
    TEXT = staticmethod(encoders)
    config: UNetConfig

    def __init__(
        self, model: str, taps: list[str], probes: tuple[str, ...] = (), **options: Any
    ) -> None:
        super().__init__(model, taps, **options)
        self.probes = tuple(probes)
        self.init_args["probes"] = list(probes)

    def reader(self) -> FeatureReader:
        unet, spec = self.denoiser, self.feature_spec
        capture = AttentionCapture(unet, self.attention) if self.attention else None
        recorders = TapRecorder(unet, list(spec.taps)), ProbeRecorder(unet, list(spec.probes))
        return FeatureReader(self.denoise, spec, *recorders, capture)

    def denoise(self, latents: Tensor, timestep: Tensor, condition: dict) -> Tensor:
        return self.denoiser(latents, timestep, **condition, return_dict=False)[0]

    def condition(self, text: Encoded) -> dict:
        told: dict[str, Any] = {"encoder_hidden_states": text.states}
        count = len(text.states)
        if text.pooled is not None:
            size = (self.image_size, self.image_size)
            sizes = torch.tensor([(*size, 0, 0, *size)], device=self.device, dtype=self.dtype)
            told["added_cond_kwargs"] = {
                "text_embeds": text.pooled,
                "time_ids": sizes.expand(count, -1),
            }
        if self.config.embeds_guidance:
            told["timestep_cond"] = self._guidance(count)
        return told

    def _guidance(self, count: int) -> Tensor:
        """Embed the guidance scale, as latent consistency models want it (arXiv 2310.04378)."""
        from diffusers import StableDiffusionPipeline

        scale = torch.full((count,), self.guidance_scale - 1.0, dtype=torch.float32)
        width = self.config.denoiser["time_cond_proj_dim"]
        embedded = StableDiffusionPipeline.get_guidance_scale_embedding(None, scale, width)
        return embedded.to(self.device, self.dtype)
