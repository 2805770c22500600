"""ovseg.backbones.autoencoder: rounding as diffusers rounds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ovseg.backbones.autoencoder import check_images, decode_images, encode_images


class Half(torch.nn.Module):
    """Decodes to twice the latent, encodes to half the image."""

    config = SimpleNamespace(scaling_factor=0.5)
    dtype = torch.float32

    def decode(self, latents, return_dict):
        return (latents,)

    def encode(self, images):
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: images))


def test_decoding_rounds_as_diffusers_does():
    from diffusers.image_processor import VaeImageProcessor

    latents = torch.randn(2, 3, 50, 50, generator=torch.Generator().manual_seed(0))
    images = VaeImageProcessor().postprocess(latents / 0.5, output_type="pil")
    expected = torch.stack([torch.from_numpy(np.array(image)) for image in images])
    assert torch.equal(decode_images(Half(), latents), expected.permute(0, 3, 1, 2))


def test_encoding_maps_0_and_255_to_the_ends():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    latents = encode_images(Half(), images, torch.float32)
    torch.testing.assert_close(latents.flatten(), torch.tensor([-0.5, -0.3, 0.5]))


def test_checks():
    check_images(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 2, 4)
    with pytest.raises(ValueError, match=r"uint8 \(2, 3, 4, 4\), got torch.float32 \(2, 3, 4, 4\)"):
        check_images(torch.zeros(2, 3, 4, 4), 2, 4)
