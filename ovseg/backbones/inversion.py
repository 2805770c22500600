"""Deterministic inversion: the noise from which a model would have drawn a given image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def invert(
    scheduler: Any,
    denoise: Callable[[Tensor, Tensor], Tensor],
    clean: Tensor,
    timesteps: Tensor,
    steps: int,
) -> list[Tensor]:
    """Follow the sampling backwards, from clean latents to given timesteps.

    DDIM inversion (Song et al., ICLR 2021, arXiv 2010.02502; Dhariwal and Nichol, arXiv
    2105.05233, appendix F): every step takes the prediction for the next, noisier latent from the
    latent at hand. A flow-matching model is followed by Euler steps in the same way.

    Args:
        scheduler: A scheduler of diffusers that belongs to the model.
        denoise: The denoiser's output for latents ``(B, C, h, w)`` at a scalar timestep.
        clean: ``(B, C, h, w)``.
        timesteps: ``(S,)``, in any order.
        steps: Steps to the noisiest of them; the others are met on the way.

    Returns:
        What would enter the denoiser at each of the timesteps, ``(B, C, h, w)`` each.

    Raises:
        ValueError: If the model predicts something else than noise or velocity.
    """
    reached: dict[float, Tensor] = {}
    latents, level = clean, (1.0, 0.0)
    for timestep in _course(timesteps, steps):
        output = denoise(latents, timesteps.new_tensor(timestep))
        image, noise = _parts(scheduler, output, latents, level)
        level = noise_level(scheduler, timestep)
        latents = level[0] * image + level[1] * noise
        reached[timestep] = latents
    return [reached[float(t)] for t in timesteps.tolist()]


def noise_level(scheduler: Any, timestep: float) -> tuple[float, float]:
    """Return the shares of image and noise in what enters the denoiser at a timestep."""
    if hasattr(scheduler, "alphas_cumprod"):
        share = float(scheduler.alphas_cumprod[round(timestep)])
        return share**0.5, (1 - share) ** 0.5
    noise = timestep / scheduler.config.num_train_timesteps  # flow matching
    return 1 - noise, noise


def _course(timesteps: Tensor, steps: int) -> Sequence[float]:
    """Return the timesteps to visit, from the cleanest on."""
    last = float(timesteps.max())
    between = torch.linspace(0, last, steps + 1, dtype=torch.float64).round()[1:-1].tolist()
    return sorted({t for t in between if t > 0} | {float(t) for t in timesteps.tolist()})


def _parts(
    scheduler: Any, output: Tensor, latents: Tensor, level: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Take latents apart into the clean ones and the noise that an output says they hold."""
    image_share, noise_share = level
    kind = "flow"
    if hasattr(scheduler, "alphas_cumprod"):
        kind = scheduler.config.prediction_type
    if kind == "flow":  # the output is noise - image
        return latents - noise_share * output, latents + image_share * output
    if kind == "epsilon":
        return (latents - noise_share * output) / image_share, output
    if kind == "v_prediction":
        image = image_share * latents - noise_share * output
        return image, image_share * output + noise_share * latents
    raise ValueError(
        f"inversion takes models that predict noise or velocity, this one predicts {kind!r}: set "
        "inversion_steps to 0"
    )
