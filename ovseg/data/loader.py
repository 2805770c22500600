"""A training loader that resumes inside an epoch."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import DataLoader

from ovseg.structures import Batch


class TrainLoader(DataLoader):
    """A DataLoader over a `TrainSampler` whose state is how many batches it has given out.

    Lightning saves and restores the state of a loader that has one (that of rank 0, so it holds
    nothing of a rank). A generator, so that the sampler's epoch is read at the first batch, with
    any number of workers.
    """

    _given = 0
    _resume = 0

    def __iter__(self) -> Iterator[Batch]:
        self._given, self._resume = self._resume, 0
        self.sampler.skip = self._given
        for batch in super().__iter__():
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
