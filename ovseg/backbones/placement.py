"""Where the parts of a pipeline are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Turns:
    """Parts of a pipeline that take turns on a device: one at a time, the others in main memory.

    Args:
        parts: All of them. Each is brought when it is called (of an autoencoder: its ``encode`` or
            ``decode``), and goes when another is.
        device: Where they work; it may be changed while all rest.
    """

    def __init__(self, parts: Sequence[nn.Module], device: torch.device) -> None:
        from accelerate.hooks import ModelHook, add_hook_to_module

        self.device = device
        self._there: nn.Module | None = None
        hook = ModelHook()
        hook.pre_forward = self._begin
        for part in parts:
            add_hook_to_module(part.to("cpu"), hook)

    @torch.compiler.disable
    def _begin(self, part: nn.Module, *args: Any, **told: Any) -> tuple[tuple, dict]:
        """Bring a part and what it is called with, once the part before it has gone."""
        from accelerate.utils import send_to_device

        if part is not self._there:
            self.rest()
            self._there = part
            part.to(self.device)
        return send_to_device(args, self.device), send_to_device(told, self.device)

    def rest(self) -> None:
        """Send back the part that is there."""
        if self._there is not None:
            self._there.to("cpu")
            self._there = None
