"""Reading what passes through a denoiser: which modules can be tapped, and hooks that tap them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ovseg.structures import TapSpec

SD1_TAPS = (
    "conv_in",
    *(f"down_blocks.0.attentions.{i}" for i in range(2)),
    "down_blocks.0.downsamplers.0",
    *(f"down_blocks.1.attentions.{i}" for i in range(2)),
    "down_blocks.1.downsamplers.0",
    *(f"down_blocks.2.attentions.{i}" for i in range(2)),
    "down_blocks.2.downsamplers.0",
    *(f"down_blocks.3.resnets.{i}" for i in range(2)),
    "mid_block",
    *(f"up_blocks.0.resnets.{i}" for i in range(2)),
    "up_blocks.0.upsamplers.0",
    *(f"up_blocks.1.attentions.{i}" for i in range(2)),
    "up_blocks.1.upsamplers.0",
    *(f"up_blocks.2.attentions.{i}" for i in range(2)),
    "up_blocks.2.upsamplers.0",
    *(f"up_blocks.3.attentions.{i}" for i in range(3)),
)
"""The outputs of the 25 blocks of Stable Diffusion 1.x (12 input blocks, the middle, 12 output
blocks) under diffusers' module names: the features of Li et al., ICCV 2023 (arXiv 2301.05221)."""

_BLOCK = re.compile(
    r"conv_in|conv_out|(mid_block|(down|up)_blocks\.\d+)"
    r"(\.(resnets|attentions|downsamplers|upsamplers)\.\d+)?"
    r"|(single_)?transformer_blocks\.\d+"
)


def tappable(network: nn.Module) -> list[str]:
    """Return the names of a denoiser's blocks and of the layers that they are made of."""
    return [name for name, _ in network.named_modules() if _BLOCK.fullmatch(name)]


def first_output(output: Any) -> Tensor:
    """Return the first thing that a U-Net's module has returned."""
    output = getattr(output, "sample", output)
    return output[0] if isinstance(output, tuple) else output


class TapRecorder:
    """Keep the outputs of named modules during chosen calls.

    The hooks are registered once, here, so that a network that is compiled afterwards keeps them
    (hooks added after the first compiled call never fire).

    Args:
        network: The network, not compiled yet.
        names: Module names.
        to_map: Turns a module's output into a map ``(B, C, h, w)``.

    Raises:
        ValueError: If the network has no module of that name; lists those it has.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        to_map: Callable[[Any], Tensor] = first_output,
    ) -> None:
        modules = dict(network.named_modules())
        unknown = [name for name in names if name not in modules or not name]
        if unknown:
            raise ValueError(
                f"no block {', '.join(map(repr, unknown))} to tap in {type(network).__name__}; "
                f"it has {', '.join(tappable(network))}"
            )
        self.names = tuple(names)
        self._to_map = to_map
        self._outputs: dict[str, Tensor] | None = None
        for name in self.names:
            modules[name].register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, module: nn.Module, args: tuple, output: object) -> None:
        if self._outputs is not None:
            self._outputs[name] = self._to_map(output)

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """Fill the yielded dict, in the order of execution, while the context lasts.

        Raises:
            RuntimeError: On leaving, if a tapped module was not called.
        """
        self._outputs = outputs = {}
        try:
            yield outputs
        finally:
            self._outputs = None
        missing = [name for name in self.names if name not in outputs]
        if missing:
            raise RuntimeError(
                f"no feature arrived from {', '.join(missing)}: the module was not called, or the "
                "network was compiled before it was tapped; call load() before torch.compile"
            )


def split_branches(output: Tensor, run: int, kept: int) -> Tensor:
    """Pair the guidance branches of one call.

    Args:
        output: ``(run * B, C, h, w)``: all unconditional samples, then all conditional ones.
        run: Branches in the call, 1 or 2.
        kept: Branches to keep, counted from the conditional one.

    Returns:
        ``(B, kept, C, h, w)`` float32.
    """
    branches = output.unflatten(0, (run, -1))[run - kept :]
    return branches.transpose(0, 1).float()


Meta = tuple[nn.Module, Callable[[], None]]
"""A denoiser without weights, and what calls it once."""


def measure_taps(meta: Meta, recorder: TapRecorder, image_size: int) -> dict[str, TapSpec]:
    """Find channels and stride of each tap by running a denoiser without weights or data.

    Args:
        meta: The denoiser.
        recorder: Of the taps, on that denoiser.
        image_size: Height and width of the image.

    Returns:
        ``{tap: TapSpec}`` in network order.

    Raises:
        ValueError: If the output of a tap is no feature map.
    """
    network, run = meta
    with recorder.recording() as outputs:
        run()
    return {name: _spec(network, name, out, image_size) for name, out in outputs.items()}


def _spec(network: nn.Module, name: str, output: Tensor, image_size: int) -> TapSpec:
    if not isinstance(output, Tensor) or output.ndim != 4 or image_size % output.shape[-1]:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"the output of {name!r} is no feature map of a {image_size} px image, but {shape}; "
            f"tap one of {', '.join(tappable(network))}"
        )
    return TapSpec(output.shape[1], image_size // output.shape[-1])
