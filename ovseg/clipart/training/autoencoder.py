"""The autoencoder: 64x64 pictures to 4x16x16 latents and back."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from ovseg.clipart.captions import draw_scene
from ovseg.clipart.scenes import render
from ovseg.clipart.training.loop import train


def pictures(seed: int, start: int, count: int, device: str = "cpu") -> Tensor:
    """Return drawn training scenes ``(count, 3, 64, 64)`` in [-1, 1]."""
    images = [torch.from_numpy(render(draw_scene(seed, start + i))[0]) for i in range(count)]
    return torch.stack(images).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1


def _edges(x: Tensor) -> Tensor:
    return torch.cat([x.diff(dim=2).flatten(1), x.diff(dim=3).flatten(1)], dim=1)


def train_autoencoder(
    folder: Path, out: Path, seed: int, device: str, steps: int = 1100, batch: int = 16
) -> None:
    """Train and save ``folder/vae`` with the scaling factor that gives latents unit variance."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    ).to(device, memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        x = pictures(seed + 200, step * batch, batch, device)
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        reconstruction = F.l1_loss(y, x) + F.mse_loss(y, x) + F.l1_loss(_edges(y), _edges(x))
        return reconstruction + 2e-4 * posterior.kl().mean() / 1024

    train("autoencoder", vae, loss, steps=steps, lr=3e-3, out=out, weight_decay=0.0, ema=0.99)
    vae.eval()
    with torch.no_grad():
        x = pictures(seed + 201, 0, 256, device)
        latents = vae.encode(x).latent_dist.mode()
        mae = (vae.decode(latents).sample - x).abs().mean().item() / 2
        vae.register_to_config(scaling_factor=1 / latents.std().item())
    print(f"autoencoder: mean absolute error {mae:.4f} of 1, latent std {latents.std():.3f}")
    vae.save_pretrained(folder / "vae", safe_serialization=True)
