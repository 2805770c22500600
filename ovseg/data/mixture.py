"""Several streams as one, in the ratio of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ovseg.backbones.base import DiffusionBackbone
from ovseg.data.base import Stream
from ovseg.data.cache import join_features, select_features
from ovseg.structures import Batch, Entities
from ovseg.vocabulary import Vocabulary


class MixtureStream(Stream):
    """A weighted mixture of streams: synthetic and real images, or several datasets.

    The streams take turns, always in the same order: among the first n positions stream k has as
    many as Sainte-Laguë's method gives it of n seats for its weight, so that every stretch of
    positions holds the streams in the ratio of the weights, and a shuffled batch does on average.
    A stream's samples come in their order, and begin again when they are used up.

    Batches hold images and labels; what else every stream of a batch has (requests, found flags,
    with a backbone entities and features) is kept, the rest is left out.

    Args:
        streams: What is mixed.
        weights: One positive number per stream; None takes every sample once.
        size: Samples of an epoch. By default just enough for every sample to occur, so that only
            streams that are short for their weight are repeated.

    Raises:
        ValueError: If there is no stream, or weights or size do not fit.
    """

    def __init__(
        self, streams: list[Stream], weights: list[float] | None = None, size: int | None = None
    ) -> None:
        if not streams:
            raise ValueError("a mixture needs streams, got none")
        if weights is not None and len(weights) != len(streams):
            raise ValueError(f"{len(streams)} streams take as many weights, got {len(weights)}")
        if not all(isfinite(weight) and weight > 0 for weight in weights or ()):
            raise ValueError(
                f"weights must be positive numbers, got {weights}: leave out a stream of none"
            )
        if size is not None and size < 1:
            raise ValueError(f"size must be >= 1 or null, got {size}")
        self.streams, self.weights, self.size = list(streams), weights, size
        self.fresh = any(stream.fresh for stream in self.streams)
        self.generated = all(stream.generated for stream in self.streams)

    def bind(self, vocabulary: Vocabulary) -> None:
        """Bind every stream.

        Raises:
            ValueError: If a stream holds no sample.
        """
        super().bind(vocabulary)
        for stream in self.streams:
            stream.bind(vocabulary)
        if empty := [n for n, stream in enumerate(self.streams) if not len(stream)]:
            raise ValueError(
                f"stream {empty[0]} of the mixture ({type(self.streams[empty[0]]).__name__}) holds "
                "no sample: leave it out"
            )

    def check(self, backbone: DiffusionBackbone | None) -> None:
        """Let every stream check the backbone."""
        for stream in self.streams:
            stream.check(backbone)

    def to(self, device: torch.device) -> None:
        """Move what every stream uses."""
        for stream in self.streams:
            stream.to(device)

    def describe(self) -> dict:
        """Return the arguments."""
        streams = [stream.describe() for stream in self.streams]
        kept = {"streams": streams, "weights": self.weights, "size": self.size}
        return {**super().describe(), **kept}

    def taught_classes(self) -> set[int]:
        """Return the classes that any of the streams teaches."""
        return set().union(*(stream.taught_classes() for stream in self.streams))

    def practices(self) -> set[str]:
        """Return what any of the streams does."""
        return set().union(*(stream.practices() for stream in self.streams))

    @property
    def repeats(self) -> bool:
        """Whether a stream is repeated, or repeats a sample itself."""
        again = np.bincount(self._owners, minlength=len(self.streams)) > self._lengths
        return bool(again.any()) or any(stream.repeats for stream in self.streams)

    @cached_property
    def _lengths(self) -> np.ndarray:
        """Number of samples of each stream."""
        return np.array([len(stream) for stream in self.streams])

    @cached_property
    def _owners(self) -> np.ndarray:
        """Number of the stream of each position of an epoch."""
        weights = self._lengths if self.weights is None else self.weights
        return interleave(weights, self._lengths, self.size)

    @cached_property
    def _turns(self) -> np.ndarray:
        """How many turns a stream has had before its one of each position of an epoch."""
        turns = np.empty_like(self._owners)
        for number in range(len(self.streams)):
            mine = self._owners == number
            turns[mine] = np.arange(mine.sum())
        return turns

    def __len__(self) -> int:
        return len(self._owners)

    def _place(self, positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return of each position the stream, and the position in that."""
        epochs, rows = np.divmod(np.array(positions, dtype=np.int64), len(self))
        owners = self._owners[rows]
        places = self._turns[rows] + epochs * np.bincount(self._owners)[owners]
        endless = np.array([stream.fresh for stream in self.streams])[owners]
        return owners, np.where(endless, places, places % self._lengths[owners])

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        """Return what the streams give for these positions, to be put together by `complete`."""
        owners, places = self._place(positions)
        parts = {
            number: self.streams[number][places[owners == number].tolist()]
            for number in np.unique(owners).tolist()
        }
        return MixedBatch(torch.tensor(list(positions), dtype=torch.long), parts=parts)

    def complete(self, batch: MixedBatch, backbone: DiffusionBackbone | None) -> Batch:
        """Let every stream complete its part, and put the parts together.

        Raises:
            ValueError: If their images differ in size.
        """
        parts = [self.streams[n].complete(part, backbone) for n, part in batch.parts.items()]
        owners, _ = self._place(batch.indices.tolist())
        order = np.argsort(np.argsort(owners, kind="stable")).tolist()
        if len({part.images.shape[-2:] for part in parts}) > 1:
            sizes = (
                f"{part.images.shape[-2]} x {part.images.shape[-1]} "
                f"({type(self.streams[number]).__name__})"
                for number, part in zip(batch.parts, parts, strict=True)
            )
            raise ValueError(
                f"images of {', '.join(sizes)} pixels make no batch: bring the streams to one "
                "size, real images by `transforms` such as Resize, or RandomCrop and Pad"
            )
        return join(batch.indices, parts, order)


@dataclass
class MixedBatch(Batch):
    """What several streams give, before it is put together.

    Attributes:
        parts: ``{number of the stream: its batch}``, in the order of the numbers.
    """

    parts: dict[int, Batch] = field(default_factory=dict)


def interleave(
    weights: Sequence[float], lengths: Sequence[int], size: int | None = None
) -> np.ndarray:
    """Let streams take turns by their weights, after Sainte-Laguë: the j-th turn of a stream (from
    0) is due at (j + 1/2) / weight.

    Args:
        weights: Of each stream, > 0.
        lengths: Of each stream.
        size: Number of turns; None: as many as it takes to give every stream its length.

    Returns:
        The number of the stream whose turn it is, ``(size,)`` int64.
    """
    shares = np.array(weights, dtype=np.float64) / sum(weights)
    end = max((length - 0.5) / share for length, share in zip(lengths, shares, strict=True))
    most = end if size is None else size + len(shares)  # the last is due half a turn each later
    due = [(np.arange(int(most * share) + 2) + 0.5) / share for share in shares]
    owners = np.repeat(np.arange(len(due)), [len(times) for times in due])
    times = np.concatenate(due)
    order = np.argsort(times, kind="stable")
    return owners[order[: np.sum(times <= end) if size is None else size]]


def join(indices: Tensor, parts: Sequence[Batch], order: list[int]) -> Batch:
    """Put completed batches together; fields that one of them lacks are left out.

    Args:
        indices: ``(B,)`` int64 of the whole.
        parts: Of B samples in all, images of one size.
        order: Where each sample of the whole stands in the parts laid end to end.
    """
    whole = Batch(indices)

    def have(name: str) -> list | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else values

    if images := have("images"):
        whole.images = torch.cat(images)[order]
    if labels := have("labels"):
        whole.labels = torch.cat(labels)[order]
    for name in ("sizes", "original_sizes"):
        if any(getattr(part, name) is not None for part in parts):
            setattr(whole, name, torch.cat([_sizes(part, name) for part in parts])[order])
    if found := have("found"):
        whole.found = _cat(found)[order]
    if all(part.requests for part in parts):
        requests = [request for part in parts for request in part.requests]
        whole.requests = [requests[place] for place in order]
    if entities := have("entities"):
        rows = ("text", "class_ids", "valid")
        whole.entities = Entities(*(_cat([getattr(e, r) for e in entities])[order] for r in rows))
        if features := have("features"):
            names = whole.entities.text.shape[1]
            whole.features = select_features(join_features(features, names), order)
    return whole


def _sizes(part: Batch, name: str) -> Tensor:
    """Return sizes ``(B, 2)`` of a part; what it does not tell is the size of what it holds."""
    for values in (getattr(part, name), part.sizes):
        if values is not None:
            return values
    return part.indices.new_tensor(part.images.shape[-2:]).expand(len(part), -1)


def _cat(rows: Sequence[Tensor]) -> Tensor:
    """Lay tensors ``(B, K, ...)`` end to end, padded with zeros to the largest K."""
    most = max(len(values[0]) for values in rows)
    grown = [pad(v, (0, 0) * (v.ndim - 2) + (0, most - v.shape[1])) for v in rows]
    return torch.cat(grown)
