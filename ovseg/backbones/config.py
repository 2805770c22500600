"""What the configuration files of a U-Net pipeline say, read without loading weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from ovseg.backbones.attention import measure_probes
from ovseg.backbones.files import PipelineFiles, quiet
from ovseg.backbones.taps import measure_taps
from ovseg.structures import TapSpec


class UNetConfig:
    """Sizes of a diffusers pipeline with a U-Net and one text encoder.

    Args:
        files: The pipeline's files.
        image_size: Height and width of the images; None for the size the model was made for.
    """

    def __init__(self, files: PipelineFiles, image_size: int | None = None) -> None:
        self.files, self._chosen_size = files, image_size

    @cached_property
    def unet(self) -> dict:
        """The U-Net's ``config.json``.

        Raises:
            ValueError: If the pipeline is of another kind.
        """
        index = self.files.config("model_index.json")
        if "unet" not in index or "text_encoder_2" in index:
            raise ValueError(
                f"the model {self.files.model!r} is a {index.get('_class_name')}; UNetBackbone "
                "takes pipelines with a U-Net and one text encoder (Stable Diffusion 1 and 2)"
            )
        return self.files.config("unet/config.json")

    @cached_property
    def scheduler(self) -> dict:
        """The model's own ``scheduler_config.json``."""
        return self.files.config("scheduler/scheduler_config.json")

    @cached_property
    def text_width(self) -> int:
        """Width of the text encoder's last hidden state."""
        return self.files.config("text_encoder/config.json")["hidden_size"]

    @cached_property
    def stride(self) -> int:
        """Image pixels per latent pixel."""
        return 2 ** (len(self.files.config("vae/config.json")["block_out_channels"]) - 1)

    @cached_property
    def image_size(self) -> int:
        """Height and width of the images.

        Raises:
            ValueError: If the size asked for is no multiple of the stride.
        """
        own = self.unet["sample_size"]
        own = (own if isinstance(own, int) else own[0]) * self.stride
        size = own if self._chosen_size is None else self._chosen_size
        if size < 1 or size % self.stride:
            raise ValueError(f"image_size must be a positive multiple of {self.stride}, got {size}")
        return size

    @property
    def latent_size(self) -> int:
        """Height and width of the latents."""
        return self.image_size // self.stride

    def measure(
        self, taps: Sequence[str], probes: Sequence[str] = ()
    ) -> tuple[dict[str, TapSpec], dict[str, TapSpec]]:
        """Return channels and stride of each tap, and heads and stride of each probe.

        Both in network order; see `measure_taps` and `measure_probes`.
        """
        sizes = (self.latent_size, self.image_size)
        with quiet():
            found = measure_taps(self.unet, taps, *sizes)
            return found, measure_probes(self.unet, probes, *sizes) if probes else {}
