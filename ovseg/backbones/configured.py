"""A pipeline of diffusers as a backbone, as far as its configuration files tell."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor

from ovseg.backbones.autoencoder import check_autoencoder
from ovseg.backbones.base import DiffusionBackbone
from ovseg.backbones.config import PipelineConfig
from ovseg.backbones.encoders import NameEmbeddings
from ovseg.backbones.files import PipelineFiles
from ovseg.backbones.schedule import build_scheduler, tapped_calls
from ovseg.structures import FeatureSpec

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def computes_in_bfloat16() -> bool:
    """Return whether the CPU has instructions for it, and does not only emulate them."""
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    units = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private, may be gone one day
    return any(getattr(torch.cpu, unit, bool)() for unit in units)


DTYPES["auto"] = torch.bfloat16 if computes_in_bfloat16() else torch.float32


class ConfiguredBackbone(DiffusionBackbone):
    """What is known of a frozen diffusers pipeline before its weights are read.

    Args:
        model: A folder in diffusers' format, a Hub id, or "clipart", the embedded one.
        taps: Names of the denoiser's modules whose outputs are the features.
        steps: Sampling steps.
        tap_steps: Calls of the denoiser at which the taps are read, counted from the clean end: 1
            is the last call. Their order is that of S.
        guidance_scale: Classifier-free guidance; none at 1 or less. A guidance-distilled model is
            told it instead.
        both_branches: Keep the features of the unconditional branch too (G = 2).
        scheduler: A diffusers scheduler as ``{"class_path": ..., "init_args": {...}}``; None for
            the model's own.
        attention: Modules whose cross-attention becomes ``Features.attention``: blocks, or single
            attention modules. Sampling averages over all its calls, `features` over the tapped
            ones.
        inversion_steps: Steps of DDIM inversion by which `encode_image` reaches the tapped steps; 0
            adds noise instead.
        image_size: Height and width of the images; None for the size the model was made for.
        template: Sentence in which a name is embedded.
        names_in: How a name is embedded: in a "sentence" of its own, by the mean over its tokens;
            in the image's "prompt" if it stands there; or "pooled": the one vector that CLIP has
            for its sentence (`TextEncoders.pooled`).
        dtype: "float32", "float16", "bfloat16", or "auto": bfloat16 if this machine's CPU has
            instructions for it, else float32. The weights' device is not known yet: name the dtype
            for a GPU.
        revision: Commit, branch or tag on the Hub.
        variant: Variant of the weight files, e.g. "fp16".
        licence: The model's, for the datasets made with it; None for what its card says.
        local_files_only: Never ask the Hub.
        vae_tiling: Decode and encode large images tile by tile.
        offload: Keep on the device only the part that is at work, the others in main memory.
        compile: Compile the denoiser; a dict is passed to `torch.compile`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    CONFIG: type[PipelineConfig]
    """Reads the configuration of this kind of pipeline."""

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
        inversion_steps: int = 0,
        image_size: int | None = None,
        template: str = "a photograph of a {name}",
        names_in: Literal["sentence", "prompt", "pooled"] = "sentence",
        dtype: str = "float32",
        revision: str | None = None,
        variant: str | None = None,
        licence: str | None = None,
        local_files_only: bool = False,
        vae_tiling: bool = False,
        offload: bool = False,
        compile: bool | dict = False,
    ) -> None:
        own = {k: v for k, v in locals().items() if k not in {"self", "__class__"}}
        super().__init__()
        self.init_args = {k: list(v) if isinstance(v, tuple) else v for k, v in own.items()}
        _check(taps, (steps, inversion_steps), tap_steps, template, names_in, dtype)
        self.taps, self.steps, self.tap_steps = list(taps), steps, tuple(tap_steps)
        self.guidance_scale, self.both_branches = guidance_scale, both_branches
        self.scheduler, self.attention = scheduler, tuple(attention)
        self.probes: tuple[str, ...] = ()
        self.template, self.names_in, self.dtype = template, names_in, DTYPES[dtype]
        self.inversion_steps = inversion_steps
        self.vae_tiling, self.offload, self.compile_options = vae_tiling, offload, compile
        self.licence = licence
        self.files = PipelineFiles(model, revision, variant, local_files_only)
        self.config = self.CONFIG(self.files, image_size)
        self.register_buffer("_anchor", torch.empty(0), persistent=False)  # knows the device
        self._names = NameEmbeddings(template, names_in)

    @property
    def image_size(self) -> int:
        """Height and width of the images."""
        check_autoencoder(self.config.vae, self.files.model)
        return self.config.image_size

    @cached_property
    def feature_spec(self) -> FeatureSpec:
        if self.both_branches and self.config.embeds_guidance:
            raise ValueError(
                f"the model {self.files.model!r} is told its guidance and has no unconditional "
                "branch: set both_branches to false"
            )
        check_autoencoder(self.config.vae, self.files.model)
        taps, probes = self.config.measure(self.taps, self.probes)
        return FeatureSpec(taps, len(self.tap_steps), 1 + self.both_branches, probes)

    @cached_property
    def text_width(self) -> int:
        pooled = self.names_in == "pooled"
        return self.config.pooled_width if pooled else self.config.text_width

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
            "branches": 1 + self.both_branches,
            "template": self.template,
            **({"probes": sorted(self.probes)} if self.probes else {}),
            **({"names_in": self.names_in} if self.names_in != "sentence" else {}),
            **({"guidance_scale": self.guidance_scale} if self._told_guidance else {}),
            **({"image_size": self.image_size} if self._resized else {}),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def _told_guidance(self) -> bool:
        """Whether each call depends on the guidance scale."""
        config = self.config
        return config.embeds_guidance and config.denoiser.get("guidance_embeds", True)

    @property
    def _resized(self) -> bool:
        """Whether images are of another size than the model was made for."""
        asked = self.init_args["image_size"]
        return asked is not None and self.image_size != self.config.own_size

    def describe(self) -> dict:
        return {
            **self.init_args,
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": self.init_args,
            "revision": self.files.commit,
            "licence": self.licence or self.files.licence,
            "timesteps": [round(float(t), 3) for t in self.timesteps],
            "scheduler": type(self._schedule(torch.device("cpu"))).__name__,
            "image_size": self.image_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "digest": self.digest,
        }

    def _schedule(self, device: torch.device) -> Any:
        course = partial(self.config.course, self.steps)
        return build_scheduler(self.config.scheduler, self.scheduler, self.steps, device, course)


def _check(
    taps: Sequence[str],
    steps: tuple[int, int],
    tap_steps: Sequence[int],
    template: str,
    names_in: str,
    dtype: str,
) -> None:
    if steps[0] < 1 or steps[1] < 0:
        raise ValueError(
            f"steps must be at least 1 and inversion_steps at least 0, got {steps[0]} and "
            f"{steps[1]}"
        )
    if not taps or len(set(taps)) < len(taps):
        raise ValueError(f"taps must name at least one module, each once, got {list(taps)}")
    if not tap_steps or len(set(tap_steps)) < len(tap_steps) or min(tap_steps) < 1:
        raise ValueError(f"tap_steps must be different numbers from 1 up, got {tap_steps}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if template.count("{name}") != 1:
        raise ValueError(f"template must contain {{name}} exactly once, got {template!r}")
    if names_in not in ("sentence", "prompt", "pooled"):
        raise ValueError(f"names_in must be sentence, prompt or pooled, got {names_in!r}")
