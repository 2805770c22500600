"""The contract of a stream of batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from ovseg.backbones.base import DiffusionBackbone
from ovseg.quality import Filter
from ovseg.structures import Batch, ShardPosition
from ovseg.vocabulary import Vocabulary

PSEUDO_LABELS = "pseudo-labels of real images"
IGNORED_UNSEEN = "real images with ignored pixels of unseen classes"
UNSEEN_NAMES = "generated images of unseen classes, asked for by their names"


class Stream(Dataset, ABC):
    """A map-style dataset that is asked for whole batches: ``stream[[3, 1, 2]]`` is a `Batch`.

    Which positions form a batch, and on which rank, is the samplers' business
    (`ovseg.data.samplers`); a stream only says how many samples there are.

    Attributes:
        fresh: Whether the positions after the last are samples too, and every epoch of a training
            takes new ones: epoch e those from e * len on.
        generated: Whether a model made the images; else they are real.
    """

    fresh: bool = False
    generated: bool = False

    def bind(self, vocabulary: Vocabulary) -> None:
        """Tell the stream (and the parts it holds) which classes there are."""
        self.vocabulary = vocabulary

    def check(self, backbone: DiffusionBackbone | None) -> None:  # noqa: B027 - most take any
        """Refuse, by a ValueError, a backbone that does not fit; called after `bind`."""

    def to(self, device: torch.device) -> None:  # noqa: B027 - optional: most streams hold no module
        """Move the modules that `complete` uses to the device."""

    def describe(self) -> dict:
        """Return JSON-ready facts for `dataset.json` that tell this stream from others."""
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}"}

    def taught_classes(self) -> set[int]:
        """Ids of the classes of which somebody drew masks that these labels come from.

        True masks count, and those of a detector that was trained with such. Known after `bind`. A
        stream with drawn masks must return their classes: the default says that there are none.
        """
        return set()

    def practices(self) -> set[str]:
        """What a protocol may rule out: `PSEUDO_LABELS`, `IGNORED_UNSEEN`, `UNSEEN_NAMES`.

        Known after `bind`.
        """
        return set()

    @property
    def repeats(self) -> bool:
        """Whether a sample may stand at several positions: fit to train on, not to score."""
        return False

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def __getitem__(self, positions: Sequence[int]) -> Batch:
        """Return the samples at these positions, on CPU, without touching a backbone."""

    def complete(self, batch: Batch, backbone: DiffusionBackbone | None) -> Batch:
        """Add what needs the device: called after transfer, without gradients.

        A live stream samples and annotates here. With a backbone, every stream adds `entities` and
        `features`.
        """
        return batch


class WritableStream(Stream):
    """A stream that `predict` can write: its completed batches hold requests and an annotation.

    What it describes has a `size` and a `shard_size`.

    Attributes:
        shard_size: Samples per shard, before any are rejected.
        filter: Decides which samples are kept when the stream is written; None keeps all.
    """

    shard_size: int
    filter: Filter | None = None

    @property
    def num_shards(self) -> int:
        """Number of shards that the stream makes at most."""
        return -(-len(self) // self.shard_size)

    def place(self, positions: Sequence[int]) -> ShardPosition | None:
        """Return where consecutive positions inside one shard stand in it, else None."""
        if not positions or list(positions) != list(range(positions[0], positions[-1] + 1)):
            return None
        shard, first = divmod(positions[0], self.shard_size)
        end = min((shard + 1) * self.shard_size, len(self))
        if positions[-1] >= end:
            return None
        return ShardPosition(shard, first == 0, positions[-1] + 1 == end)
