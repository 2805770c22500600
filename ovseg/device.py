"""Where models run."""

from __future__ import annotations

import torch


def find_device(name: str) -> torch.device:
    """Return the device that a user names, e.g. "cpu" or "cuda:1".

    Raises:
        ValueError: If there is none of that name, or nothing can be computed on it.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"nothing can be computed on the device {name!r} ({why}): give another, such as cpu"
        ) from None
    return device
