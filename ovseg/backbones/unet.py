"""Any U-Net text-to-image pipeline of diffusers as a backbone: Stable Diffusion 1, 2, clip art."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ovseg.backbones.autoencoder import check_images, decode_images, encode_images
from ovseg.backbones.base import DiffusionBackbone
from ovseg.backbones.config import UNetConfig
from ovseg.backbones.files import PipelineFiles
from ovseg.backbones.reader import FeatureReader
from ovseg.backbones.schedule import (
    add_noise,
    build_scheduler,
    draw_noise,
    guide,
    scale_input,
    take_step,
    tapped_calls,
)
from ovseg.backbones.text import embed_in_prompt, embed_name, encode, entity_positions
from ovseg.structures import DiffusionSample, Features, FeatureSpec, Request

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_DTYPES["auto"] = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


class UNetBackbone(DiffusionBackbone):
    """A frozen diffusers pipeline with one text encoder, an autoencoder and a U-Net.

    Args:
        model: A folder in diffusers' format, a Hub id, or "clipart", the embedded one.
        taps: Names of U-Net modules whose outputs are the features (`SD1_TAPS` for the paper's).
        steps: Sampling steps.
        tap_steps: U-Net calls at which the taps are read, counted from the clean end: 1 is the
            last call. Their order is that of S.
        guidance_scale: Classifier-free guidance; none at 1 or less.
        both_branches: Keep the features of the unconditional branch too (G = 2).
        scheduler: A diffusers scheduler as ``{"class_path": ..., "init_args": {...}}``; None for
            the model's own.
        attention: U-Net modules whose cross-attention becomes ``Features.attention``: blocks, or
            single ``attn2`` modules. Sampling averages over all its calls, `features` over the
            tapped ones.
        probes: Cross-attention modules, named like those of ``attention``, that grounders can ask
            for any name (`Features.probes`), at the tapped calls.
        image_size: Height and width of the images; None for the size the model was made for.
        template: Sentence in which a name is embedded.
        names_in: Where a name is embedded: in a "sentence" of its own, or in the image's "prompt"
            if it stands there.
        dtype: "float32", "float16", "bfloat16", or "auto": bfloat16 where the processor computes
            in it, else float32.
        revision: Commit, branch or tag on the Hub.
        variant: Variant of the weight files, e.g. "fp16".
        local_files_only: Never ask the Hub.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        model: str,
        taps: list[str],
        steps: int = 50,
        tap_steps: tuple[int, ...] = (1,),
        guidance_scale: float = 7.5,
        both_branches: bool = False,
        scheduler: dict | None = None,
        attention: tuple[str, ...] = (),
        probes: tuple[str, ...] = (),
        image_size: int | None = None,
        template: str = "a photograph of a {name}",
        names_in: Literal["sentence", "prompt"] = "sentence",
        dtype: str = "float32",
        revision: str | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        own = {k: v for k, v in locals().items() if k not in {"self", "__class__"}}
        super().__init__()
        self.init_args = {k: list(v) if isinstance(v, tuple) else v for k, v in own.items()}
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if not taps or len(set(taps)) < len(taps):
            raise ValueError(f"taps must name at least one module, each once, got {list(taps)}")
        if not tap_steps or len(set(tap_steps)) < len(tap_steps) or min(tap_steps) < 1:
            raise ValueError(f"tap_steps must be different numbers from 1 up, got {tap_steps}")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
        if template.count("{name}") != 1:
            raise ValueError(f"template must contain {{name}} exactly once, got {template!r}")
        if names_in not in ("sentence", "prompt"):
            raise ValueError(f"names_in must be sentence or prompt, got {names_in!r}")
        self.taps, self.steps, self.tap_steps = list(taps), steps, tuple(tap_steps)
        self.guidance_scale, self.branches = guidance_scale, 2 if both_branches else 1
        self.scheduler, self.attention, self.probes = scheduler, tuple(attention), tuple(probes)
        self.template, self.names_in, self.dtype = template, names_in, _DTYPES[dtype]
        self.files = PipelineFiles(model, revision, variant, local_files_only)
        self.config = UNetConfig(self.files, image_size)
        self.register_buffer("_anchor", torch.empty(0), persistent=False)  # knows the device
        self._names: dict[str, Tensor] = {}
        self._loaded = False

    # What the configuration files say

    @property
    def image_size(self) -> int:
        """Height and width of the images."""
        return self.config.image_size

    @cached_property
    def feature_spec(self) -> FeatureSpec:
        taps, probes = self.config.measure(self.taps, self.probes)
        return FeatureSpec(taps, len(self.tap_steps), self.branches, probes)

    @cached_property
    def text_width(self) -> int:
        return self.config.text_width

    @cached_property
    def timesteps(self) -> Tensor:
        course = self._schedule(torch.device("cpu")).timesteps
        return course[tapped_calls(len(course), self.tap_steps)]

    @cached_property
    def latents_digest(self) -> str:
        return self.files.digest[:16]

    @cached_property
    def digest(self) -> str:
        facts = {
            "model": self.files.digest,
            "taps": sorted(self.taps),
            "timesteps": [round(float(t), 3) for t in self.timesteps],
            "branches": self.branches,
            "template": self.template,
            **({"probes": sorted(self.probes)} if self.probes else {}),
            **({"names_in": self.names_in} if self.names_in != "sentence" else {}),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def describe(self) -> dict:
        return {
            **self.init_args,
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": self.init_args,
            "revision": self.files.commit,
            "licence": self.files.licence,
            "timesteps": [round(float(t), 3) for t in self.timesteps],
            "scheduler": type(self._schedule(torch.device("cpu"))).__name__,
            "image_size": self.image_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "digest": self.digest,
        }

    def _schedule(self, device: torch.device) -> Any:
        return build_scheduler(self.config.scheduler, self.scheduler, self.steps, device)

    # Weights

    @property
    def device(self) -> torch.device:
        """Where the model is, or will be once loaded."""
        return self._anchor.device

    def load(self) -> None:
        if self._loaded:
            return
        self.feature_spec  # noqa: B018 - a tap that does not exist is told before weights are read
        self.tokenizer = self.files.load("tokenizer")
        self.text_encoder = self.files.load("text_encoder", self.dtype)
        self.vae = self.files.load("vae", self.dtype)
        self.unet = self.files.load("unet", self.dtype)
        self._reader = FeatureReader(self.unet, self.feature_spec, self.attention)
        self.requires_grad_(False).eval().to(self.device)
        self._loaded = True

    def train(self, mode: bool = True) -> UNetBackbone:
        """Stay in eval mode whatever is asked for."""
        return super().train(False)

    # The contract

    @torch.no_grad()
    def sample(self, requests: Sequence[Request]) -> DiffusionSample:
        requests, tokens = self._prepare(requests)
        guided = self.guidance_scale > 1
        branches = max(self.branches, 2 if guided else 1)
        scheduler = self._schedule(self.device)
        kept = tapped_calls(len(scheduler.timesteps), self.tap_steps)
        inputs, readings = {}, {}
        with self._own_precision(), self._watching(tokens):
            text = self._encode(requests, branches)
            generators = [torch.Generator().manual_seed(r.seed) for r in requests]
            latents = self._noise(generators) * getattr(scheduler, "init_noise_sigma", 1.0)
            for call, timestep in enumerate(scheduler.timesteps):
                entering = scale_input(scheduler, latents, timestep)
                if call in kept:
                    inputs[call] = entering.float()
                    output, readings[call] = self._reader.read(entering, timestep, text, branches)
                else:
                    output = self._reader.call(entering, timestep, text, branches)
                output = guide(output, len(requests), self.guidance_scale)
                latents = take_step(scheduler, output, timestep, latents, generators)
            images = decode_images(self.vae, latents)
        features = self._reader.collect([readings[call] for call in kept])
        stacked = torch.stack([inputs[call] for call in kept], dim=1)
        entities = self.entities(requests)
        return DiffusionSample(requests, images, stacked, self.timesteps, entities, features)

    @torch.no_grad()
    def features(self, latents: Tensor, timesteps: Tensor, requests: Sequence[Request]) -> Features:
        requests, tokens = self._prepare(requests)
        if latents.ndim != 5 or latents.shape[:2] != (len(requests), len(timesteps)):
            raise ValueError(
                f"latents must be (B, S, C, h, w) with B = {len(requests)} requests and S = "
                f"{len(timesteps)} timesteps, got {tuple(latents.shape)}"
            )
        latents = latents.to(self.device, self.dtype)
        with self._own_precision(), self._watching(tokens):
            text = self._encode(requests, self.branches)
            readings = [
                self._reader.read(latents[:, step], timestep, text, self.branches)[1]
                for step, timestep in enumerate(timesteps.to(self.device))
            ]
        return self._reader.collect(readings)

    @torch.no_grad()
    def encode_image(self, images: Tensor, requests: Sequence[Request]) -> Tensor:
        requests, _ = self._prepare(requests)
        check_images(images, len(requests), self.image_size)
        generators = [torch.Generator().manual_seed(r.seed) for r in requests]
        with self._own_precision():
            clean = encode_images(self.vae, images.to(self.device), self.dtype)
            noise = self._noise(generators)
            noisy = [
                add_noise(self._schedule(self.device), clean, noise, timestep)
                for timestep in self.timesteps.to(self.device)
            ]
        return torch.stack(noisy, dim=1).float()

    @torch.no_grad()
    def embed(self, requests: Sequence[Request]) -> Tensor:
        self.load()
        width = max(1, *(len(request.entities) for request in requests))
        text = torch.zeros(len(requests), width, self.text_width, device=self.device)
        with self._own_precision():
            for row, request in enumerate(requests):
                inside = self._embed_in_prompt(request) if self.names_in == "prompt" else {}
                for column, entity in enumerate(request.entities):
                    found = inside.get(column)
                    text[row, column] = self._embed_name(entity.name) if found is None else found
        return text

    # One by one

    def _embed_name(self, name: str) -> Tensor:
        if name not in self._names:
            self._names[name] = embed_name(
                self.tokenizer, self.text_encoder, name, self.template, self.device
            )
        return self._names[name]

    def _embed_in_prompt(self, request: Request) -> dict[int, Tensor]:
        return embed_in_prompt(self.tokenizer, self.text_encoder, request, self.device)

    def _prepare(self, requests: Sequence[Request]) -> tuple[list[Request], list[list[list[int]]]]:
        """Load the weights, and find each entity's tokens, which also checks the prompts."""
        requests = list(requests)
        if not requests:
            raise ValueError("there must be at least one request")
        self.load()
        return requests, [entity_positions(self.tokenizer, request) for request in requests]

    def _own_precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, enabled=False)

    def _watching(self, tokens: list[list[list[int]]]):
        return self._reader.watching(tokens, self.config.latent_size)

    def _encode(self, requests: list[Request], branches: int) -> Tensor:
        prompts = [request.prompt for request in requests]
        if branches == 2:
            prompts = [request.negative_prompt for request in requests] + prompts
        return encode(self.tokenizer, self.text_encoder, prompts, self.device)

    def _noise(self, generators: list[torch.Generator]) -> Tensor:
        side = self.config.latent_size
        shape = (self.unet.config.in_channels, side, side)
        return draw_noise(shape, generators, (self.device, self.dtype))
