"""``ovseg check``: does a backbone of your own keep its contract? To be asked before training."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ovseg.backbones.base import DiffusionBackbone
from ovseg.device import find_device
from ovseg.grounders.base import check_features
from ovseg.structures import DiffusionSample, Entity, Request

PROMPT = "a photo of a cat and a house"
CLOSE = 0.02
"""Largest mean difference of equal features, as a share of their standard deviation."""


class Broken(Exception):
    """What a backbone does not keep, in one line."""


def requests() -> list[Request]:
    """Return two requests: of two names, and of one."""
    both = (Entity(1, "cat", (13, 16)), Entity(2, "house", (23, 28)))
    alone = "a photo of a house"
    return [
        Request(0, 11, PROMPT, both),
        Request(1, 12, alone, (Entity(2, "house", (13, 18)),)),
    ]


def spec_is_kept(backbone: DiffusionBackbone, sample: DiffusionSample) -> None:
    """Features have the shapes that `feature_spec` tells without weights."""
    spec = backbone.feature_spec
    try:
        check_features(spec, sample.features)
    except ValueError as error:
        raise Broken(str(error)) from None
    size = sample.images.shape[-1]
    for tap, maps in sample.features.maps.items():
        if tap in spec.taps and maps.shape[-1] * spec.taps[tap].stride != size:
            raise Broken(
                f"{tap!r} is said to have stride {spec.taps[tap].stride}, its map is "
                f"{tuple(maps.shape[-2:])} of an image of {size} pixels"
            )


def sample_is_whole(backbone: DiffusionBackbone, sample: DiffusionSample) -> None:
    """`sample` returns uint8 images, latents of every tapped step, and names padded with zeros."""
    count, steps = len(sample.requests), len(backbone.timesteps)
    if sample.images.dtype != torch.uint8 or sample.images.shape[:2] != (count, 3):
        raise Broken(f"images must be uint8 (B, 3, H, W), got {_what(sample.images)}")
    if sample.latents.ndim != 5 or sample.latents.shape[:2] != (count, steps):
        raise Broken(f"latents must be ({count}, {steps}, C, h, w), got {_what(sample.latents)}")
    if not sample.latents.isfinite().all():
        raise Broken("latents are not finite")
    found, told = sample.timesteps.float().cpu(), backbone.timesteps.float().cpu()
    if found.shape != told.shape or not torch.allclose(found, told):
        raise Broken("the sample's timesteps are not those of `timesteps`")
    text, valid = sample.entities.text, sample.entities.valid
    if valid.tolist() != [[True, True], [True, False]] or text[1, 1].any():
        raise Broken("entities must be padded with valid = False and zeros")
    if text.shape[2] != backbone.text_width:
        raise Broken(f"text_width is {backbone.text_width}, embeddings have {text.shape[2]}")


def latents_give_the_features_again(backbone: DiffusionBackbone, sample: DiffusionSample) -> None:
    """`features` on what `sample` has stored gives the features of `sample`."""
    again = backbone.features(sample.latents, sample.timesteps, sample.requests)
    for tap, maps in sample.features.maps.items():
        if (gap := _gap(maps, again.maps.get(tap))) > CLOSE:
            raise Broken(f"{tap!r} differs by {gap:.2g} of its standard deviation")
    for name, probe in sample.features.probes.items():
        found = again.probes.get(name)
        if (gap := _gap(probe.queries, found and found.queries)) > CLOSE:
            raise Broken(f"the probe {name!r} differs by {gap:.2g} of its standard deviation")


def neighbours_change_nothing(backbone: DiffusionBackbone, sample: DiffusionSample) -> None:
    """A sample is a function of its own request, and its seed matters."""
    alone = backbone.sample(sample.requests[1:])
    if (gap := _levels(alone.images, sample.images[1:])) > 2:
        raise Broken(f"alone and in a batch, an image differs by {gap:.1f} levels in the mean")
    other = backbone.sample([sample.requests[1]._replace(seed=99)])
    if _levels(alone.images, other.images) == 0:
        raise Broken("two seeds give the same image")


def names_are_told_apart(backbone: DiffusionBackbone, sample: DiffusionSample) -> None:
    """A name has one embedding in all requests of no prompt, another name another one."""
    names = [Request(0, 0, "", (Entity(1, "cat"), Entity(2, "house")))]
    text = backbone.embed([*names, names[0]._replace(seed=5)])
    if not torch.equal(text[0], text[1]):
        raise Broken("the same name has two embeddings")
    if torch.allclose(text[0, 0], text[0, 1]):
        raise Broken("two names have the same embedding")


def photographs_are_encoded(backbone: DiffusionBackbone, sample: DiffusionSample) -> None:
    """`encode_image` gives latents like those of `sample`, from the requests' seeds."""
    found = backbone.encode_image(sample.images, sample.requests)
    if found.shape != sample.latents.shape or not found.isfinite().all():
        raise Broken(f"latents must be {tuple(sample.latents.shape)}, got {_what(found)}")
    if not torch.equal(found, backbone.encode_image(sample.images, sample.requests)):
        raise Broken("the same photograph and seed give two latents")


def facts_build_it_again(backbone: DiffusionBackbone, sample: DiffusionSample) -> None:
    """`describe` is JSON, and builds a backbone of the same digest if it has `init_args`."""
    facts = backbone.describe()
    try:
        facts = json.loads(json.dumps(facts))
    except TypeError as error:
        raise Broken(f"describe() is no JSON: {error}") from None
    if "init_args" in facts and "class_path" in facts:
        again = resolve_name(facts["class_path"])(**facts["init_args"])
        if again.digest != backbone.digest:
            raise Broken("built again from describe(), it has another digest")


def weights_are_frozen(backbone: DiffusionBackbone, sample: DiffusionSample) -> None:
    """No parameter is trained, and `train` leaves eval mode alone."""
    if any(p.requires_grad for p in backbone.parameters()):
        raise Broken("a parameter requires gradients")
    if any(
        module.training for module in backbone.eval().train().modules() if module is not backbone
    ):
        raise Broken("train() has put a part into training mode")


CHECKS: list[Callable[[DiffusionBackbone, DiffusionSample], None]] = [
    spec_is_kept,
    sample_is_whole,
    latents_give_the_features_again,
    neighbours_change_nothing,
    names_are_told_apart,
    photographs_are_encoded,
    facts_build_it_again,
    weights_are_frozen,
]


def check(backbone: DiffusionBackbone) -> dict[str, str | None]:
    """Run every check.

    Returns:
        ``{what is asked: None, or what is broken}``.
    """
    sample = backbone.sample(requests())
    results: dict[str, str | None] = {}
    for one in CHECKS:
        line = (one.__doc__ or one.__name__).strip()
        try:
            one(backbone, sample)
            results[line] = None
        except Broken as error:
            results[line] = str(error)
        except Exception as error:  # a backbone that is no good may raise anything
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            results[line] = why.removesuffix(": ")
    return results


def main(argv: Sequence[str]) -> int:
    """Check the backbone of a YAML file; 2 if it breaks its contract.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the backbone cannot be built, or cannot sample.
    """
    for word in argv:
        if word.endswith((".yaml", ".yml")) and not Path(word).is_file():
            raise FileNotFoundError(f"no file {word}: give a YAML with class_path and init_args")
    parser = ArgumentParser(prog="ovseg check", description=__doc__, exit_on_error=False)
    parser.add_argument("--backbone", type=DiffusionBackbone, required=True, sub_configs=True)
    parser.add_argument("--device", default="cpu", help="where to run it")
    given = parser.parse_args(list(argv))
    device = find_device(given.device)
    results = check(parser.instantiate(given).backbone.to(device))
    table = Table("contract of a backbone", "")
    for line, broken in results.items():
        table.add_row(line, "kept" if broken is None else f"BROKEN: {broken}")
    Console(markup=False, emoji=False).print(table)
    return 2 if any(results.values()) else 0


def _gap(one: Tensor, other: Tensor | None) -> float:
    if other is None or one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().mean() / one.std().clamp(min=1e-9))


def _levels(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().mean())


def _what(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
