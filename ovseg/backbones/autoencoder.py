"""Images to latents and back, rounded as diffusers' VaeImageProcessor does."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def decode_images(vae: nn.Module, latents: Tensor) -> Tensor:
    """Decode clean latents ``(B, C, h, w)`` to images ``(B, 3, H, W)`` uint8 RGB."""
    latents = (latents / vae.config.scaling_factor + _shift(vae)).to(vae.dtype)
    images = vae.decode(latents, return_dict=False)[0]
    return ((images * 0.5 + 0.5).clamp(0, 1).float() * 255).round().to(torch.uint8)


def encode_images(vae: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Encode images ``(B, 3, H, W)`` uint8 RGB to clean latents, the mode of the posterior."""
    pixels = (images.float() / 255 * 2 - 1).to(vae.dtype)
    latents = vae.encode(pixels).latent_dist.mode()
    return ((latents - _shift(vae)) * vae.config.scaling_factor).to(dtype)


def _shift(vae: nn.Module) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0


def check_autoencoder(config: dict, model: str) -> None:
    """Check by its configuration that an autoencoder is one that can be used here.

    Raises:
        ValueError: If it is of another kind.
    """
    if "block_out_channels" not in config:
        raise ValueError(
            f"the autoencoder of the model {model!r} is of class {config.get('_class_name')}, not "
            "AutoencoderKL: choose a model with one"
        )


def check_images(images: Tensor, batch: int, size: int) -> None:
    """Check that images are uint8 RGB of the model's size.

    Raises:
        ValueError: If they are not.
    """
    wanted = (batch, 3, size, size)
    if tuple(images.shape) != wanted or images.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 {wanted}, got {images.dtype} {tuple(images.shape)}; resize them"
        )
