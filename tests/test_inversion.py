"""ovseg.backbones.inversion: against the inverse scheduler of diffusers, and there and back."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from toy_data import request

from ovseg.backbones.autoencoder import encode_images
from ovseg.backbones.inversion import invert
from ovseg.backbones.unet import UNetBackbone
from ovseg.clipart.scenes import compose, render, rng

NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
NOISE |= {"beta_schedule": "scaled_linear", "clip_sample": False}


def network(latents, timestep):
    """Stand in for a denoiser: it reads both its inputs."""
    return torch.tanh(0.3 * latents + 0.1) * (1 + float(timestep) / 1000)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_it_is_what_the_inverse_scheduler_of_diffusers_does(kind):
    scheduler = DDIMScheduler(**NOISE, prediction_type=kind)
    inverse = DDIMInverseScheduler(**NOISE, prediction_type=kind)
    inverse.set_timesteps(10)  # 0, 100, ... 900
    clean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    # the first step begins at a clean image, the scheduler's at timestep 0
    share = scheduler.alphas_cumprod[100]
    expected = {100: share.sqrt() * clean + (1 - share).sqrt() * network(clean, 100)}
    for before, timestep in pairwise(inverse.timesteps[1:].tolist()):
        latents = expected[before]
        output = network(latents, timestep)
        expected[timestep] = inverse.step(output, timestep, latents, return_dict=False)[0]
    found = invert(scheduler, network, clean, torch.tensor([900, 300]), 9)
    for timestep, latents in zip((900, 300), found, strict=True):
        torch.testing.assert_close(latents, expected[timestep], atol=1e-5, rtol=1e-5)


def test_a_flow_is_followed_by_euler_steps():
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    clean = torch.ones(1, 1, 1, 1)
    found = invert(scheduler, lambda x, t: 2 * x, clean, torch.tensor([500.0]), 2)
    # x + (0.25 - 0) * 2 x = 1.5; 1.5 + (0.5 - 0.25) * 3 = 2.25
    assert found[0].item() == pytest.approx(2.25)


def test_a_tapped_step_at_zero_is_met():
    scheduler = DDIMScheduler(**NOISE)
    found = invert(scheduler, network, torch.ones(1, 1, 2, 2), torch.tensor([0, 400]), 4)
    share = scheduler.alphas_cumprod[0].item()
    expected = share**0.5 + (1 - share) ** 0.5 * network(torch.ones(()), 0)
    assert found[0].unique().item() == pytest.approx(expected.item(), abs=1e-6)
    assert (found[1] - found[0]).abs().min() > 1e-2


def test_models_that_predict_the_image_are_refused():
    scheduler = DDIMScheduler(**NOISE, prediction_type="sample")
    with pytest.raises(ValueError, match="predicts 'sample': set inversion_steps to 0"):
        invert(scheduler, network, torch.ones(1, 1, 2, 2), torch.tensor([400]), 4)


def test_sampling_from_the_inverted_latents_gives_the_picture_again():
    from diffusers import StableDiffusionPipeline

    ddim = {"class_path": "diffusers.DDIMScheduler"}
    told = {"steps": 25, "tap_steps": (25,), "scheduler": ddim, "inversion_steps": 100}
    backbone = UNetBackbone("clipart", ["conv_in"], **told)
    pictures = torch.from_numpy(render(compose(rng(5, 0), ["apple"]))[0]).permute(2, 0, 1)[None]
    requests = [request(0, "a photo of an apple", "apple")]
    latents = backbone.encode_image(pictures, requests)
    assert torch.equal(latents, backbone.encode_image(pictures, requests))  # no noise in it
    pipeline = StableDiffusionPipeline.from_pretrained(backbone.files.folder).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    again = pipeline(
        "a photo of an apple",
        latents=latents[:, 0],
        num_inference_steps=25,
        guidance_scale=1.0,
        output_type="latent",
    ).images
    clean = encode_images(backbone.vae, pictures, torch.float32)
    print((again - clean).square().mean().sqrt(), clean.std())
    assert (again - clean).square().mean().sqrt() < 0.1 * clean.std()


def test_a_negative_number_of_steps_is_refused(tiny_pipeline):
    with pytest.raises(ValueError, match="inversion_steps at least 0, got 50 and -1"):
        UNetBackbone(tiny_pipeline, ["conv_in"], inversion_steps=-1)
