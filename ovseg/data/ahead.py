"""The next training batch is made while the model learns from the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from ovseg.structures import Batch

Complete = Callable[[Batch], Batch]
"""Completes a batch on the device."""


class Ahead:
    """Move and complete batches on a CUDA stream of their own, those of training one ahead.

    All of a training's batches are completed on this stream, so that what a backbone keeps from one
    to the next (the embedding of a name, say) is there when it is read.

    Args:
        device: Where batches go. One that is not a GPU has no streams: there all that is left is
            the thread, which takes the cores that the training needs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def each(self, complete: Complete, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, completed in a thread, for use on the current stream.

        Batches, their order and the first error are those of completing each when it is due.
        """
        self._wait_for_current()  # what the model's weights still wait for
        waiting, due, failed = iter(batches), None, None
        with ThreadPoolExecutor(1, "ahead") as thread:
            while failed is None:
                try:
                    batch = next(waiting)
                except Exception as error:  # it is due after the batch in the thread
                    failed = error
                else:
                    following = thread.submit(self._make, complete, batch)
                if due is not None:
                    yield self._hand_over(*due.result())
                due = following if failed is None else None
        if not isinstance(failed, StopIteration):
            raise failed

    def now(self, complete: Complete, batch: Batch) -> Batch:
        """Complete a batch that is not of the training, for use on the current stream."""
        self._wait_for_current()  # what has moved it to the device
        return self._hand_over(*self._make(complete, batch))

    def end(self) -> None:
        """Let the current stream wait for all that was begun."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def _wait_for_current(self) -> None:
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def _make(self, complete: Complete, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        """Return a completed batch, and what tells that its kernels have ended."""
        with torch.cuda.stream(self._stream):  # without a stream this does nothing
            made = complete(move_data_to_device(batch, self.device))
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
