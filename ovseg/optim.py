"""Muon for kernels and matrices, AdamW for the rest, as one optimizer for a YAML's `class_path`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) where a parameter is a kernel or a matrix, AdamW elsewhere.

    torch's Muon takes matrices alone, so it is given a flat view of each kernel. Both use one
    learning rate, of AdamW's usual size (`adjust_lr_fn="match_rms_adamw"`). The groups hold the
    kernels themselves: whoever clips or rescales gradients reaches them.

    Args:
        params: Parameters; kernels must be contiguous (not `channels_last`), and the model on its
            device already.
        lr: Learning rate of both.
        weight_decay: Decoupled weight decay of both.
        betas: AdamW's.
        adamw: Parameters that AdamW trains although they are kernels or matrices (Muon's authors
            leave it the first layer, the last one, and embeddings).

    Raises:
        ValueError: If a kernel is not contiguous.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        adamw: Iterable[nn.Parameter] = (),
    ) -> None:
        params, apart = list(params), {id(p) for p in adamw}
        self._kernels = [p for p in params if p.ndim > 1 and id(p) not in apart]
        if any(not p.is_contiguous() for p in self._kernels):
            raise ValueError("Muon needs contiguous kernels: do not use channels_last")
        self._views = [nn.Parameter(p.data.flatten(1)) for p in self._kernels]
        inner = {id(p) for p in self._kernels}
        rest = [p for p in params if id(p) not in inner]
        shared = {"lr": lr, "weight_decay": weight_decay}
        self._parts: list[Optimizer] = []
        groups = []
        if rest:
            self._parts.append(AdamW(rest, betas=tuple(betas), **shared))
            groups.append({**self._parts[-1].param_groups[0], "params": rest})
        if self._views:
            self._parts.append(Muon(self._views, adjust_lr_fn="match_rms_adamw", **shared))
            groups.append({**self._parts[-1].param_groups[0], "params": self._kernels})
        super().__init__(groups, shared)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the weights from their gradients."""
        loss = None if closure is None else closure()
        self._hand_down()
        for view, kernel in zip(self._views, self._kernels, strict=True):
            view.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for part in self._parts:
            part.step()
        for view in self._views:
            view.grad = None  # it would keep the kernel's alive
        return loss

    def state_dict(self) -> dict:
        """Return the states of both parts."""
        self._hand_down()
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore both parts."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        for group, part in zip(self.param_groups, self._parts, strict=True):
            group.update(_options(part.param_groups[0]))

    def _hand_down(self) -> None:
        """Give the parts what a scheduler has changed in the groups."""
        for group, part in zip(self.param_groups, self._parts, strict=True):
            part.param_groups[0].update(_options(group))


def _options(group: dict) -> dict:
    return {key: value for key, value in group.items() if key != "params"}
