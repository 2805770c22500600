"""The denoiser: a UNet2DConditionModel trained on captions alone, never on masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from ovseg.clipart.captions import caption, draw_scene
from ovseg.clipart.scenes import rng
from ovseg.clipart.training.autoencoder import pictures
from ovseg.clipart.training.loop import digest_of, first_process_first, kept_arrays, train
from ovseg.clipart.training.text import tokenize

POOL = 40_000  # scenes; their captions are written afresh every time
NOISE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
PROMPTS = (
    *("a photo of a house", "a photo of a cat", "a photo of a key", "a photo of a flower"),
    *("a photo of a boat", "a photo of a bus", "a photo of an umbrella", "a photo of a moon"),
    *("a photo of a red fish", "a photo of a house and a fish", "a photo of a cat and a tree"),
    *(
        "a photo of a boat and a star",
        "a photo of a flower and a key",
        "a photo of a bus and a bird",
    ),
    *("a photo of an apple and a chair", "a photo of a drum and a cake"),
)


def latent_pool(vae: AutoencoderKL, out: Path, seed: int, size: int, device: str) -> Tensor:
    """Encode ``size`` training scenes once: ``(size, 4, 16, 16)`` scaled, kept in ``out``."""

    def make() -> dict[str, np.ndarray]:
        chunks = []
        with torch.no_grad():
            for start in tqdm(range(0, size, 100), desc="latents", mininterval=5):
                x = pictures(seed + 300, start, 100, device)
                chunks.append(vae.encode(x).latent_dist.mode().cpu() * vae.config.scaling_factor)
        return {"latents": torch.cat(chunks).numpy()}

    facts = {"seed": seed, "size": size, "autoencoder": digest_of(vae)}
    return torch.from_numpy(kept_arrays(out / "latents.npz", facts, make)["latents"])


def build_unet() -> UNet2DConditionModel:
    """Build the clip-art world's U-Net; cross-attention at every scale, for names live at 16x16."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=64,
        attention_head_dim=(2, 3, 4),  # diffusers' name for the number of heads
        only_cross_attention=(True, False, False),
        norm_num_groups=8,
    )


def assemble(folder: Path, unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """Put the trained parts together as a StableDiffusionPipeline with a fast solver."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(
            **NOISE, lambda_min_clipped=-5.1, timestep_spacing="trailing", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sheet(pipeline: StableDiffusionPipeline, path: Path, steps: int = 12) -> None:
    """Write a contact sheet of generated pictures, two per prompt."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(n) for n in range(2 * len(PROMPTS))]
    images = pipeline(
        [p for p in PROMPTS for _ in range(2)],
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=generators,
        output_type="np",
    ).images
    rows = [np.concatenate(images[k : k + 8], axis=1) for k in range(0, len(images), 8)]
    grid = Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8))
    grid.resize((grid.width * 2, grid.height * 2), Image.NEAREST).save(path)


def train_unet(
    folder: Path,
    out: Path,
    seed: int,
    device: str,
    steps: int = 6000,
    batch: int = 32,
    lr: float = 2e-3,
) -> None:
    """Train and save ``folder`` as a StableDiffusionPipeline, going on from a U-Net in it."""
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device).eval()
    with first_process_first():
        pool = latent_pool(vae, out, seed, POOL, device)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder").to(device).eval()
    noise = DDPMScheduler(**NOISE)
    torch.manual_seed(seed)
    trained = (folder / "unet").is_dir()  # an earlier result is the start
    unet = UNet2DConditionModel.from_pretrained(folder / "unet") if trained else build_unet()
    unet.to(device)

    def loss(step: int) -> Tensor:
        r = rng(seed + 301, (steps << 32) + step)  # other batches when it goes on
        picked = r.integers(len(pool), size=batch)
        texts = [caption(r, draw_scene(seed + 300, int(i))) for i in picked]
        texts = [t if r.random() > 0.1 else "" for t in texts]  # guidance dropout
        g = torch.Generator().manual_seed(int(r.integers(2**62)))
        x = pool[picked]
        e = torch.randn(x.shape, generator=g)
        t = (torch.rand(batch, generator=g) + torch.arange(batch)) / batch  # stratified
        t = (t**0.8 * 1000).long().clamp(max=999)  # more of the noisy end: shapes come late
        noisy, target = noise.add_noise(x, e, t), noise.get_velocity(x, e, t)
        with torch.no_grad():
            hidden = text(input_ids=tokenize(tokenizer, texts).to(device)).last_hidden_state
        v = unet(noisy.to(device), t.to(device), hidden).sample
        return F.mse_loss(v, target.to(device))

    def show(model: UNet2DConditionModel, step: int) -> None:
        model.eval()
        if device == "cpu":
            sheet(assemble(folder, model), out / f"unet_{step:06d}.png")

    unet = train(
        "unet",
        unet,
        loss,
        steps=steps,
        lr=lr,
        muon=True,
        out=out,
        ema=0.998,
        on_save=show,
        every=500,
    )
    with first_process_first() as first:
        if first:
            assemble(folder, unet.to("cpu")).save_pretrained(folder, safe_serialization=True)
