"""The annotator: a small MMSegmentation U-Net of the 20 classes, trained on drawn scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from ovseg.clipart.captions import draw_scene
from ovseg.clipart.scenes import render, rng
from ovseg.clipart.training.loop import digest_of, first_process_first, kept_arrays, train
from ovseg.segmenters.folder import save_segmenter
from ovseg.segmenters.mmseg import MMSegSegmenter
from ovseg.vocabulary import Vocabulary

POOL = 12_000  # scenes seen through the autoencoder
MODEL = {
    "type": "EncoderDecoder",
    "backbone": {
        "type": "UNet",
        "base_channels": 16,
        "num_stages": 5,
        "strides": [1, 1, 1, 1, 1],
        "enc_num_convs": [2, 2, 2, 2, 2],
        "dec_num_convs": [1, 1, 2, 2],
        "downsamples": [True, True, True, True],
        "enc_dilations": [1, 1, 1, 1, 1],
        "dec_dilations": [1, 1, 1, 1],
        "norm_cfg": {"type": "BN"},
    },
    "decode_head": {
        "type": "FCNHead",
        "in_channels": 16,
        "in_index": 4,
        "channels": 16,
        "num_convs": 0,
        "concat_input": False,
        "num_classes": 21,
        "dropout_ratio": 0.0,
        "align_corners": False,
        "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
    },
    "train_cfg": {},
    "test_cfg": {"mode": "whole"},
}


def _labelled(seed: int, index: int, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene; nouns outside of the vocabulary are background."""
    scene = draw_scene(seed, index)
    image, owner = render(scene)
    ids = {c.name: c.id for c in vocabulary.classes}
    return image, np.array([0, *(ids.get(t.noun, 0) for t in scene.things)], np.uint8)[owner]


def _reconstructions(folder: Path, out: Path, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Return scenes through the autoencoder, latents disturbed a little, and their labels."""
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(device).eval()
    vocabulary = Vocabulary.load("clipart")

    def make() -> dict[str, np.ndarray]:
        generator, images, labels = torch.Generator().manual_seed(seed), [], []
        for start in tqdm(range(0, POOL, 50), desc="reconstructions", mininterval=5):
            drawn = [_labelled(seed + 400, start + i, vocabulary) for i in range(50)]
            x = torch.from_numpy(np.stack([d[0] for d in drawn])).permute(0, 3, 1, 2).float()
            with torch.no_grad():
                latents = vae.encode(x.to(device) / 127.5 - 1).latent_dist.mode()
                noise = torch.randn(latents.shape, generator=generator).to(device) * latents.std()
                amount = torch.rand(50, 1, 1, 1, generator=generator).to(device) * 0.3
                y = vae.decode(latents + amount * noise).sample
            images.append(((y.clamp(-1, 1) + 1) * 127.5).round().byte().cpu())
            labels.append(np.stack([d[1] for d in drawn]))
        return {"images": torch.cat(images).numpy(), "labels": np.concatenate(labels)}

    facts = {"seed": seed, "size": POOL, "autoencoder": digest_of(vae)}
    stored = kept_arrays(out / "reconstructions.npz", facts, make)
    return torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"])


def train_annotator(
    folder: Path, out: Path, seed: int, device: str, steps: int = 3500, batch: int = 24
) -> None:
    """Train and save ``out/annotator``, the folder of an MMSegAnnotator."""
    vocabulary = Vocabulary.load("clipart")
    with first_process_first():
        pool, pool_labels = _reconstructions(folder, out, seed, device)
    torch.manual_seed(seed)
    model = MMSegSegmenter(vocabulary.num_classes, model=MODEL).to(device)

    def loss(step: int) -> Tensor:
        r = rng(seed + 401, step)
        half = batch // 2
        picked = torch.from_numpy(r.integers(len(pool), size=batch - half))
        drawn = [_labelled(seed + 402, step * half + i, vocabulary) for i in range(half)]
        sharp = torch.from_numpy(np.stack([d[0] for d in drawn])).permute(0, 3, 1, 2)
        images = torch.cat([sharp, pool[picked]]).float()
        labels = torch.cat([torch.from_numpy(np.stack([d[1] for d in drawn])), pool_labels[picked]])
        gain = torch.from_numpy(r.uniform(0.9, 1.1, (batch, 3, 1, 1))).float()
        shift = torch.from_numpy(r.uniform(-12, 12, (batch, 3, 1, 1))).float()
        images = (images * gain + shift).clamp(0, 255)
        return model.loss(images.to(device), labels.long().to(device))

    trained = train(
        "annotator", model, loss, steps=steps, lr=2e-3, out=out, ema=0.995, weight_decay=0.02
    )
    # the average of the weights needs statistics of its own
    trained.train()
    with torch.no_grad():
        for step in range(60):
            r = rng(seed + 403, step)
            picked = torch.from_numpy(r.integers(len(pool), size=64))
            trained(pool[picked].to(device))
    with first_process_first() as first:
        if first:
            save_segmenter(trained.cpu().eval(), out / "annotator", vocabulary)
