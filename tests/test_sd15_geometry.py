"""Stable Diffusion 1.5 at its real size, 512x512, with random weights: shapes, masks, memory.

`python -m pytest -s -m large` prints the peak memory.
"""

from __future__ import annotations

import importlib
import json
import resource
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from geometries import MODELS
from toy_data import request

from ovseg.backbones.taps import SD1_TAPS
from ovseg.backbones.unet import UNetBackbone
from ovseg.grounders.fusion import FusionGrounder
from ovseg.grounders.probe import ProbeGrounder
from ovseg.structures import Features

# (channels per guidance branch, height and width) of the paper's 25 blocks, in network order
TABLE = [
    *[(320, 64)] * 3,
    *[(320, 32), (640, 32), (640, 32)],
    *[(640, 16), (1280, 16), (1280, 16)],
    *[(1280, 8)] * 3,
    (1280, 8),
    *[(1280, 8)] * 2,
    *[(1280, 16)] * 3,
    *[(1280, 32), (640, 32), (640, 32)],
    *[(640, 64), (320, 64), (320, 64), (320, 64)],
]
GROUPS = {8: 15360, 16: 14080, 32: 8320, 64: 5120}
"""Channels of each size with both branches."""

LIMIT_MB = 4096
REQUESTS = [request(0, "a photo of a house and a fish", "house", "fish")]


@pytest.fixture
def random_models(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("random_models")


PARAMETERS = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sdxl": {
        **{"unet": 2_567_463_684, "vae": 83_653_863},
        **{"text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    },
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_random_models_have_the_parameters_of_the_real_ones(random_models, name):
    with init_empty_weights():
        pipeline = random_models.MODELS[name]()
    for part, count in PARAMETERS[name].items():
        assert sum(p.numel() for p in getattr(pipeline, part).parameters()) == count, part
    config = json.loads(pipeline.unet.to_json_string())
    assert MODELS[name]["unet"].items() <= config.items()


def backbone(folder: str) -> UNetBackbone:
    return UNetBackbone(
        folder,
        list(SD1_TAPS),
        steps=1,
        both_branches=True,
        probes=("up_blocks.1", "up_blocks.2"),
        dtype="bfloat16",
    )


def features_of_one_latent(folder: str) -> Features:
    model = backbone(folder)
    latents = torch.randn(1, 1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    return model.features(latents, model.timesteps, REQUESTS)


def sampled_and_grounded(folder: str) -> tuple[torch.Tensor, Features, dict[str, torch.Tensor]]:
    model = backbone(folder)
    sample = model.sample(REQUESTS)
    grounders = (
        FusionGrounder(model.feature_spec, model.text_width),
        ProbeGrounder(model.feature_spec, model.text_width, widths=(32, 32, 48, 48)),
    )
    with torch.no_grad():
        logits = {type(g).__name__: g.eval()(sample.features, sample.entities) for g in grounders}
    return sample.images, sample.features, logits


def with_peak(work, folder: str):
    """Return the result of the work and the most memory that this process held, in MB."""
    return work(folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_child(work, folder: str):
    """Do the work in a process of its own, so that the peak is its alone."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        result, peak = pool.submit(with_peak, work, folder).result()
    print(f"{work.__name__}: {peak:.0f} MB")
    assert peak < LIMIT_MB
    return result


def check(features: Features) -> None:
    shapes = {tap: tuple(maps.shape) for tap, maps in features.maps.items()}
    rows = zip(SD1_TAPS, TABLE, strict=True)
    assert shapes == {tap: (1, 1, 2, channels, side, side) for tap, (channels, side) in rows}
    assert all(maps.isfinite().all() for maps in features.maps.values())
    totals = dict.fromkeys(GROUPS, 0)
    for maps in features.maps.values():
        totals[maps.shape[-1]] += maps.shape[2] * maps.shape[3]
    assert totals == GROUPS
    queries = {name.split(".attn")[0]: p.queries.shape for name, p in features.probes.items()}
    assert set(queries.values()) == {(1, 1, 8, 160, 16, 16), (1, 1, 8, 80, 32, 32)}
    assert len(queries) == 6


@pytest.fixture
def model(random_models, tmp_path):
    """Folder of random weights, not kept."""
    yield random_models.save(random_models.sd15, tmp_path / "sd15")
    shutil.rmtree(tmp_path / "sd15")


@pytest.mark.slow
@pytest.mark.large
@pytest.mark.timeout(2000)
def test_one_forward_at_real_size(model):
    check(in_child(features_of_one_latent, model))
    images, features, logits = in_child(sampled_and_grounded, model)
    assert images.shape == (1, 3, 512, 512) and images.dtype == torch.uint8
    assert images.float().std() > 1  # not blank
    check(features)
    for masks in logits.values():
        assert masks.shape == (1, 2, 512, 512) and masks.isfinite().all()
