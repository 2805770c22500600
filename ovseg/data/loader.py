"""A training loader that resumes inside an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from ovseg.data.base import Stream
from ovseg.structures import Batch


class TrainLoader(DataLoader):
    """A DataLoader over a `TrainSampler` whose state is how many batches it has given out.

    Lightning saves and restores the state of a loader that has one (that of rank 0, so it holds
    nothing of a rank). A generator, so that the sampler's epoch is read at the first batch, with
    any number of workers.

    Args:
        stream: What is trained on.
        ahead: Makes of the loaded batches those that are given out, or None. It may load a batch
            before it is due; what counts is what was given out.
        **options: Of a DataLoader.
    """

    _given = 0
    _resume = 0

    def __init__(
        self,
        stream: Stream,
        ahead: Callable[[Iterable[Batch]], Iterator[Batch]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(stream, batch_size=None, **options)
        self.ahead = ahead

    def __iter__(self) -> Iterator[Batch]:
        self._given, self._resume = self._resume, 0
        self.sampler.skip = self._given
        batches = super().__iter__()
        for batch in batches if self.ahead is None else self.ahead(batches):
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches given out in this epoch, and how many an epoch has."""
        return {"given": self._given, "length": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out, next time, what had been given out.

        Raises:
            ValueError: If an epoch has another number of batches now.
        """
        if state["length"] != len(self):
            raise ValueError(
                f"the checkpoint was made with {state['length']} batches per epoch and process, "
                f"now there are {len(self)}: resume with the same dataset, batch size and devices"
            )
        self._resume = state["given"] % len(self)
