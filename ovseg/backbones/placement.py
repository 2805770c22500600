"""Where the parts of a pipeline are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def place(parts: Sequence[nn.Module], device: torch.device, offload: bool) -> None:
    """Move the parts of a pipeline to a device, or let them go there only while they work.

    Args:
        parts: In the order in which they work.
        device: Where they work.
        offload: Keep each in main memory until it is called, and send it back when the next is.
    """
    if not offload:
        for part in parts:
            part.to(device)
        return
    from accelerate import cpu_offload_with_hook

    hook = None
    for part in parts:
        part.to("cpu")
        _, hook = cpu_offload_with_hook(part, device, prev_module_hook=hook)
