"""What the configuration files of a pipeline say, read without loading weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ovseg.backbones.files import PipelineFiles
from ovseg.structures import TapSpec


class PipelineConfig(ABC):
    """Sizes of a diffusers pipeline.

    Args:
        files: The pipeline's files.
        image_size: Height and width of the images; None for the size the model was made for.
    """

    PART: str
    """Folder of the denoiser."""

    KINDS: str
    """What the backbone takes, for messages."""

    def __init__(self, files: PipelineFiles, image_size: int | None = None) -> None:
        self.files, self._chosen_size = files, image_size

    @cached_property
    def denoiser(self) -> dict:
        """The denoiser's ``config.json``.

        Raises:
            ValueError: If the pipeline is of another kind, or diffusers lacks the denoiser's class.
        """
        if not self.files.has(self.PART):
            kind = self.files.index.get("_class_name")
            raise ValueError(f"the model {self.files.model!r} is a {kind}; {self.KINDS}")
        config = self.files.config(f"{self.PART}/config.json")
        self.files.kind("diffusers", config.get("_class_name"))
        return config

    @cached_property
    def scheduler(self) -> dict:
        """The model's own ``scheduler_config.json``."""
        return self.files.config("scheduler/scheduler_config.json")

    @cached_property
    def vae(self) -> dict:
        """The autoencoder's ``config.json``."""
        return self.files.config("vae/config.json")

    def width_of(self, encoder: str) -> int:
        """Return the width of a text encoder's states."""
        config = self.files.config(f"{encoder}/config.json")
        return config["hidden_size"] if "hidden_size" in config else config["d_model"]

    @property
    @abstractmethod
    def text_width(self) -> int:
        """Width of the states that names are embedded by."""

    @property
    def pooled_width(self) -> int:
        """Width of the pooled outputs of all CLIP encoders side by side."""
        return sum(map(self._pooled_width_of, self.files.clip_encoders))

    def _pooled_width_of(self, encoder: str) -> int:
        config = self.files.config(f"{encoder}/config.json")
        projected = self.files.index[encoder][1].endswith("WithProjection")
        return config["projection_dim" if projected else "hidden_size"]

    @property
    @abstractmethod
    def own_size(self) -> int:
        """Height and width of the images that the model was made for."""

    @property
    def grain(self) -> int:
        """What image sizes must be a multiple of."""
        return self.stride

    @cached_property
    def stride(self) -> int:
        """Image pixels per latent pixel."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1)

    @cached_property
    def image_size(self) -> int:
        """Height and width of the images.

        Raises:
            ValueError: If the size asked for is no multiple of the grain.
        """
        size = self.own_size if self._chosen_size is None else self._chosen_size
        if size < 1 or size % self.grain:
            raise ValueError(f"image_size must be a positive multiple of {self.grain}, got {size}")
        return size

    @property
    def latent_size(self) -> int:
        """Height and width of the latents."""
        return self.image_size // self.stride

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, h, w)`` of one latent."""
        channels = self.vae.get("latent_channels", 4)
        return channels, self.latent_size, self.latent_size

    def course(self, steps: int, scheduler: Any) -> dict:
        """Return what a scheduler of this configuration is told of the timesteps."""
        return {"num_inference_steps": steps}

    @property
    def embeds_guidance(self) -> bool:
        """Whether the guidance scale is an input: such a model has no unconditional branch."""
        return False

    @abstractmethod
    def measure(
        self, taps: Sequence[str], probes: Sequence[str] = ()
    ) -> tuple[dict[str, TapSpec], dict[str, TapSpec]]:
        """Return channels and stride of each tap, and heads and stride of each probe.

        Both in network order, found by running the denoiser without weights or data.

        Raises:
            ValueError: If one does not exist, or is no feature map.
        """
