"""The course of a sampling: which timesteps, how a latent enters the U-Net, and noising."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor

from ovseg.backbones.files import quiet


def build_scheduler(
    config: dict,
    chosen: dict | None,
    steps: int,
    device: torch.device | str = "cpu",
    course: Callable[[Any], dict] | None = None,
) -> Any:
    """Build a scheduler of diffusers with its timesteps set.

    Args:
        config: The model's own ``scheduler_config.json`` (its noise levels belong to the weights).
        chosen: ``{"class_path": "diffusers.EulerDiscreteScheduler", "init_args": {...}}``, or
            None for the model's own. The arguments override those of the model.
        steps: Sampling steps.
        device: Where its timesteps lie.
        course: Returns what `set_timesteps` is told instead of ``steps``, from the scheduler's
            configuration.

    Raises:
        ValueError: If there is no such class, it does not accept an argument, or it cannot follow
            this kind of model.
    """
    if not chosen and "_class_name" not in config:
        raise ValueError("the model's scheduler_config.json has no _class_name: set scheduler")
    chosen = chosen or {"class_path": f"diffusers.{config['_class_name']}"}
    if "class_path" not in chosen or set(chosen) - {"class_path", "init_args"}:
        raise ValueError(
            f"scheduler must be a dict with class_path and init_args, got the keys {list(chosen)}"
        )
    path = str(chosen["class_path"])
    name = path.rpartition(".")[2]
    try:
        kind = resolve_name(path if "." in path else f"diffusers.{path}")
    except (ImportError, AttributeError, ValueError):
        raise ValueError(f"no scheduler class {path!r}") from None
    options = chosen.get("init_args") or {}
    if not isinstance(options, dict):
        raise ValueError(f"init_args of the scheduler must be a dict, got {options!r}")
    for wanted in ("set_timesteps", "step"):
        if not hasattr(kind, wanted):
            raise ValueError(f"{path!r} is no scheduler: it has no {wanted}")
    itself, output, timestep, sample = kind, None, None, None
    _check_fit(name, kind.step, itself, output, timestep, sample, return_dict=False)
    expected = set(kind._get_init_keys(kind)) if hasattr(kind, "_get_init_keys") else set(options)
    if unknown := sorted(set(options) - expected):
        raise ValueError(f"{name} has no argument {', '.join(unknown)}; it has {sorted(expected)}")
    with quiet(), warnings.catch_warnings():
        # EulerDiscreteScheduler hands tensors to numpy in a way that numpy 2 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler = kind.from_config(config, **options)
        told = course(scheduler.config) if course else {"num_inference_steps": steps}
        _check_fit(name, scheduler.set_timesteps, **told, device=device)
        scheduler.set_timesteps(**told, device=device)
    return scheduler


def _check_fit(name: str, function: Callable, *given: Any, **named: Any) -> None:
    """Refuse a scheduler whose function does not take what it is given, and that alone."""
    signature = inspect.signature(function)
    try:
        signature.bind_partial(*given, **named)  # what it does not take is told first
        signature.bind(*given, **named)
    except TypeError as error:
        raise ValueError(
            f"{name} does not fit this model ({function.__name__}: {error}): set another scheduler"
        ) from None


def tapped_calls(calls: int, tap_steps: Sequence[int]) -> list[int]:
    """Turn steps counted from the clean end (1 = last call) into call numbers from 0.

    Raises:
        ValueError: If there is no such step.
    """
    for step in tap_steps:
        if not 1 <= step <= calls:
            raise ValueError(f"tap_steps must be within 1..{calls} (1 = last call), got {step}")
    return [calls - step for step in tap_steps]


def scale_input(scheduler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
    """Return what enters the U-Net."""
    if hasattr(scheduler, "scale_model_input"):
        return scheduler.scale_model_input(latents, timestep)
    return latents


def add_noise(scheduler: Any, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Noise clean latents to a timestep and scale them as they would enter the U-Net.

    Computed in float32: schedulers of diffusers round the noise level to the latents' dtype, and
    in half precision little or nothing is left of it near the clean end.

    Args:
        scheduler: Fresh, with its timesteps set.
        clean: ``(B, C, h, w)``.
        noise: Same shape, standard normal.
        timestep: Scalar.
    """
    repeated = timestep.repeat(clean.shape[0])
    if hasattr(scheduler, "add_noise"):
        noisy = scheduler.add_noise(clean.float(), noise.float(), repeated)
    else:  # flow matching
        noisy = scheduler.scale_noise(clean.float(), repeated, noise.float())
    return scale_input(scheduler, noisy.float(), timestep).to(clean.dtype)


def draw_noise(
    shape: Sequence[int], generators: Sequence[torch.Generator], like: tuple[torch.device, Any]
) -> Tensor:
    """Draw ``(B, *shape)`` standard normal noise, each sample from its own CPU generator.

    Args:
        shape: Shape of one sample.
        generators: One per sample.
        like: Device and dtype.
    """
    device, dtype = like
    rows = [torch.randn(1, *shape, generator=g, dtype=dtype) for g in generators]
    return torch.cat(rows).to(device)


def guide(output: Tensor, batch: int, scale: float) -> Tensor:
    """Combine the branches of a call by classifier-free guidance (Ho and Salimans, 2022).

    Args:
        output: ``(B, ...)`` conditional, or ``(2 * B, ...)`` unconditional, then conditional.
        batch: B.
        scale: Guidance scale; the conditional branch alone at 1 or less.
    """
    conditional = output[-batch:]
    if scale <= 1:
        return conditional
    unconditional = output[:batch]
    return unconditional + scale * (conditional - unconditional)


def take_step(
    scheduler: Any,
    output: Tensor,
    timestep: Tensor,
    latents: Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Take one step of a scheduler; a stochastic one draws from the samples' own generators."""
    accepted = inspect.signature(scheduler.step).parameters
    options = {"generator": list(generators)} if "generator" in accepted else {}
    return scheduler.step(output, timestep, latents, **options, return_dict=False)[0]
