"""The next training batch is made while the model learns from the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from ovseg.structures import Batch


class Ahead:
    """Move and complete batches in a thread, on a CUDA stream of its own, one ahead of their use.

    Batches, their order and the first error are those of completing each when it is due.

    Args:
        complete: Completes a batch on the device; called from the thread.
        device: Where batches go. One that is not a GPU has no streams: there all that is left is
            the thread, which takes the cores that the training needs.
    """

    def __init__(self, complete: Callable[[Batch], Batch], device: torch.device) -> None:
        self.complete, self.device = complete, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, completed, for use on the current stream."""
        if self._stream is not None:  # what the model's weights still wait for
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with ThreadPoolExecutor(1, "ahead") as thread:
            due = None
            for batch in batches:
                following = thread.submit(self._make, batch)
                if due is not None:
                    yield self._hand_over(*due.result())
                due = following
            if due is not None:
                yield self._hand_over(*due.result())

    def _make(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        """Return a completed batch, and what tells that its kernels have ended."""
        with torch.cuda.stream(self._stream):  # without a stream this does nothing
            made = self.complete(move_data_to_device(batch, self.device))
            return made, None if self._stream is None else self._stream.record_event()

    def _hand_over(self, batch: Batch, made: torch.cuda.Event | None) -> Batch:
        """Let the current stream wait for a batch, and keep its memory until that has used it."""
        if made is None:
            return batch
        current = torch.cuda.current_stream(self.device)
        current.wait_event(made)

        def keep(tensor: Tensor) -> None:
            if tensor.is_cuda:  # what stays on the CPU has no stream
                tensor.record_stream(current)

        apply_to_collection(batch, Tensor, keep)
        return batch
