"""The autoencoder: 64x64 pictures to 4x16x16 latents and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.clipart.captions import draw_scene
from ovseg.clipart.scenes import render
from ovseg.clipart.training.loop import first_process_first, train

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def pictures(seed: int, start: int, count: int, device: str = "cpu") -> Tensor:
    """Return drawn training scenes ``(count, 3, 64, 64)`` in [-1, 1]."""
    images = [torch.from_numpy(render(draw_scene(seed, start + i))[0]) for i in range(count)]
    return torch.stack(images).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1


def _edges(x: Tensor) -> Tensor:
    return torch.cat([x.diff(dim=2).flatten(1), x.diff(dim=3).flatten(1)], dim=1)


class _Trained(nn.Module):
    """The autoencoder, and a 1x1 convolution that reads the small picture off its latents.

    Without it the latents curl colours into fewer channels than they have, which reconstructs well
    and is hard to generate.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae, self.preview = vae, nn.Conv2d(vae.config.latent_channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        posterior = self.vae.encode(x).latent_dist
        z = posterior.sample()
        y = self.vae.decode(z).sample
        loss = F.l1_loss(y, x) + F.mse_loss(y, x) + F.l1_loss(_edges(y), _edges(x))
        loss = loss + F.mse_loss(self.preview(z), F.avg_pool2d(x, 4))
        return loss + 5e-4 * posterior.kl().mean() / z[0].numel()


@torch.no_grad()
def whiten(vae: AutoencoderKL, z: Tensor) -> None:
    """Make the latents uncorrelated, of mean 0 and variance 1, by changing the two 1x1 layers.

    Args:
        vae: Changed in place; what it reconstructs stays the same.
        z: ``(B, C, H, W)`` modes of the latents of many pictures.
    """
    values = z.movedim(1, 0).flatten(1).double()
    mean, (scale, axes) = values.mean(1), torch.linalg.eigh(torch.cov(values))
    there, back = (axes * scale.pow(p) @ axes.T for p in (-0.5, 0.5))
    into, out_of, c = vae.quant_conv, vae.post_quant_conv, len(mean)
    kernel, bias = into.weight.double().flatten(1), into.bias.double()
    kernel[:c], bias[:c] = there @ kernel[:c], there @ (bias[:c] - mean)
    kernel[c:], bias[c:] = 0, -6.0  # the width of the posterior, of no use after training
    into.weight.copy_(kernel.view_as(into.weight))
    into.bias.copy_(bias)
    kernel = out_of.weight.double().flatten(1)
    out_of.bias.add_(kernel @ mean)
    out_of.weight.copy_((kernel @ back).view_as(out_of.weight))
    vae.register_to_config(scaling_factor=1.0)


def train_autoencoder(
    folder: Path, out: Path, seed: int, device: str, steps: int = 1500, batch: int = 16
) -> None:
    """Train and save ``folder/vae``; its latents have unit variance."""
    torch.manual_seed(seed)
    from diffusers import AutoencoderKL  # late: seconds, and a report needs only the measures

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
    )
    model = _Trained(vae).to(device)

    def loss(step: int) -> Tensor:
        return model(pictures(seed + 200, step * batch, batch, device))

    trained = train(
        "autoencoder",
        model,
        loss,
        steps=steps,
        lr=2e-3,
        muon=True,
        out=out,
        weight_decay=0.0,
        ema=0.99,
    )
    with first_process_first() as first:
        if first:
            _save(trained.vae, folder, seed, device)


@torch.no_grad()
def _save(vae: AutoencoderKL, folder: Path, seed: int, device: str) -> None:
    """Whiten the latents, tell how good the pictures are, and write ``folder/vae``."""
    x = pictures(seed + 201, 0, 512, device)
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in x.split(64)])
    spread = torch.linalg.eigvalsh(torch.cov(latents.movedim(1, 0).flatten(1))).sqrt()
    whiten(vae, latents)
    parts = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in x.split(64)]
    mae = (torch.cat(parts) - x).abs().mean().item() / 2
    print(f"autoencoder: mean absolute error {mae:.4f} of 1, spread before {spread.tolist()}")
    vae.save_pretrained(folder / "vae", safe_serialization=True)
