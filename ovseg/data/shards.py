"""A dataset written by `predict`, read back at random."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ovseg.backbones.base import DiffusionBackbone
from ovseg.data.base import UNSEEN_NAMES, Stream
from ovseg.data.cache import FeatureCache
from ovseg.data.damage import DamagedSample, Tolerance
from ovseg.data.shard_file import OpenShards
from ovseg.data.shard_format import LABELLED, STORED, StoredSample, decode_sample
from ovseg.data.sources import Source, source_of
from ovseg.structures import IGNORE, Batch, Features
from ovseg.vocabulary import Vocabulary


class ShardStream(Stream):
    """The samples of a folder of shards, by position.

    Nothing is read before `bind` or ``len``. The tars' own headers are the index, read once per
    shard. Images, labels, found flags and latents are exactly those that were written; with a
    backbone one call makes the features again.

    Args:
        path: Folder that `predict` wrote, or its URL: shards are then fetched when they are needed
            first, and kept (`ovseg.data.sources`).
        limit: Take the first samples only.
        cache: Keep the features of every sample in memory once they were made, in every process:
            0.6 MB each on the clip-art world, 68 MB with all of Stable Diffusion 1.x's taps.
        max_damaged: For training: take the next good sample for one that cannot be read, with a
            warning, as long as no more than this share of those read are damaged. 0 stops at the
            first.
        cache_dir: Where the shards of URLs are kept; by default ~/.cache/ovseg/datasets.

    Raises:
        ValueError: If limit is not positive, or max_damaged no share.
    """

    def __init__(
        self,
        path: str,
        limit: int | None = None,
        cache: bool = False,
        max_damaged: float = 0.0,
        cache_dir: str | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be >= 1 or null, got {limit}")
        self.source = source_of(path, cache_dir)
        self.limit = limit
        self._cache = FeatureCache() if cache else None
        self._tolerance = Tolerance(max_damaged)
        self._open = OpenShards()
        self._paths: dict[str, Path] = {}
        self._wanted = STORED

    @property
    def manifest(self) -> dict:
        """`dataset.json`."""
        return self.source.manifest

    @cached_property
    def _shards(self) -> list[tuple[str, int]]:
        """Name and number of samples of every shard."""
        return [(name, facts["samples"]) for name, facts in self.manifest["shards"].items()]

    @cached_property
    def _ends(self) -> list[int]:
        """Position after the last sample of every shard."""
        return list(accumulate(samples for _, samples in self._shards))

    def bind(self, vocabulary: Vocabulary) -> None:
        """Check that the masks mean what the vocabulary says.

        Raises:
            FileNotFoundError: If there is no complete dataset.
            ValueError: If it was made with other classes or another split, or a shard is damaged.
        """
        super().bind(vocabulary)
        self.source.check(vocabulary)
        self._tolerance.begin(len(self))

    def describe(self) -> dict:
        """Return the arguments that decide the samples, and a digest of the dataset.

        Where it lies is no part of that: moved, it is the same.
        """
        share = self._tolerance.share
        kept = {"digest": self.source.digest, "limit": self.limit, "max_damaged": share}
        return {**super().describe(), **kept}

    def taught_classes(self) -> set[int]:
        """Return the classes that the annotator was asked for and was trained with.

        One that does not say what it was trained with counts as trained with all of them.
        """
        counts = self.manifest["counts"]["classes"]
        found = [self.vocabulary.id_of(key) for key, count in counts.items() if count["found"]]
        asked = self.manifest.get("requested_classes")
        asked = set(found if asked is None else asked)
        trained = self.manifest["annotator"].get("trained_on")
        return asked if trained is None else asked & set(trained)

    def practices(self) -> set[str]:
        """Return what the stream did that was written, and whether unseen classes were prompted.

        What taught its annotator counts.
        """
        kept = set(self.manifest.get("practices") or ())
        kept |= set(self.manifest["annotator"].get("practices") or ())
        unseen = {self.vocabulary[i].key for i in self.vocabulary.unseen}
        prompted = unseen & self.manifest["counts"]["classes"].keys()
        return kept | ({UNSEEN_NAMES} if prompted and self.generated else set())

    @property
    def generated(self) -> bool:
        """Whether a model made the images that were written."""
        return not self.manifest.get("real_images", False)

    @property
    def repeats(self) -> bool:
        """Whether a sample may stand in for a damaged one."""
        return self._tolerance.share > 0

    def __len__(self) -> int:
        return min(self._ends[-1], self.limit or self._ends[-1])

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        """Read samples; the batch's indices are those of the samples in it.

        Raises:
            ValueError: If one is damaged and none may be, or too many are, or a mask has ids that
                the vocabulary does not.
        """
        size = len(self)
        read = partial(self._read, only=self._wanted)
        pairs = [self._tolerance.read(position, size, read) for position in positions]
        samples = [sample for _, sample in pairs]
        sizes = {sample.image.shape[:2] for sample in samples}
        if len(sizes) > 1:
            raise ValueError(f"images of {sorted(sizes)} pixels of {self.source} make no batch")
        images = np.stack([sample.image for sample in samples])
        labels = np.stack([sample.mask for sample in samples]).astype(np.int64)
        latents = None
        if samples[0].latent is not None:
            latents = torch.from_numpy(np.stack([sample.latent for sample in samples]))
        return Batch(
            indices=torch.tensor([position for position, _ in pairs], dtype=torch.long),
            requests=[sample.request for sample in samples],
            images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
            labels=torch.from_numpy(labels),
            found=_pad([sample.found for sample in samples]),
            latents=latents,
            timesteps=torch.tensor(samples[0].record.timesteps),
        )

    def check(self, backbone: DiffusionBackbone | None) -> None:
        """Check that this backbone can read the latents, whatever it taps.

        Without one latents are of no use, and left out from now on.

        Raises:
            ValueError: If another model has made them, or they lack one of its tapped steps.
        """
        if backbone is None:
            self._wanted = LABELLED
            return
        self._wanted = STORED
        made_by = self.manifest["latents_digest"]
        if made_by != backbone.latents_digest:
            raise ValueError(
                f"the latents of {self.source} were made by model {made_by} "
                f"({self.manifest['backbone'].get('model')}), not by the given backbone's "
                f"{backbone.latents_digest} ({backbone.describe().get('model')})"
            )
        _steps(torch.tensor(self.manifest["timesteps"]), backbone, self.source)

    def complete(self, batch: Batch, backbone: DiffusionBackbone | None) -> Batch:
        """Add entities and features, with one call of the backbone at most."""
        if backbone is None:
            return batch
        self.check(backbone)
        entities = backbone.entities(batch.requests)
        steps = _steps(batch.timesteps, backbone, self.source)
        latents, timesteps = batch.latents[:, steps], batch.timesteps[steps]

        def make(places: list[int]) -> Features:
            requests = [batch.requests[place] for place in places]
            return backbone.features(latents[places], timesteps, requests)

        if self._cache is None:
            features = make(list(range(len(batch))))
        else:
            features = self._cache.get(batch.indices.tolist(), entities.text.shape[1], make)
        return batch.replace(entities=entities, features=features)

    def sample(self, position: int) -> StoredSample:
        """Return one sample with everything that is stored of it.

        Raises:
            IndexError: If there is no such position.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is outside 0..{len(self) - 1} of {self.source}")
        return self._read(position)

    def members(self, position: int, only: Collection[str] | None = None) -> dict[str, bytes]:
        """Return one sample's bytes by extension, unchecked.

        Args:
            position: Of the sample.
            only: Extensions; others are not read.
        """
        path, count, number = self._place(position)
        return self._open.read(path, count, number, only)

    def _place(self, position: int) -> tuple[Path, int, int]:
        """Return a sample's shard, how many that has, and which of them it is."""
        shard = bisect_right(self._ends, position)
        name, count = self._shards[shard]
        return self._path(name), count, position - (self._ends[shard] - count)

    def _path(self, name: str) -> Path:
        """Return where a shard lies, fetched if need be."""
        if name not in self._paths:
            self._paths[name] = self.source.shard(name)
        return self._paths[name]

    def _read(self, position: int, only: Collection[str] | None = None) -> StoredSample:
        """Return one sample, of some of its members if only these are asked for.

        Raises:
            DamagedSample: If its bytes cannot be read.
            ValueError: If its mask has ids that the vocabulary does not.
        """
        members = self.members(position, only)
        try:
            sample = decode_sample(members, only or STORED)
        except ValueError as error:
            raise DamagedSample(f"{self._name(position)}: {error}") from None
        classes = self.manifest["vocabulary"]["num_classes"]
        if sample.mask.max() >= classes:  # often it is not, and this is the cheapest question
            ids = sample.mask[(sample.mask >= classes) & (sample.mask != IGNORE)]
            if ids.size:
                raise ValueError(
                    f"{self._name(position)}: its mask has ids {np.unique(ids).tolist()}; the "
                    f"vocabulary has 0..{classes - 1} and {IGNORE} is ignore"
                )
        return sample

    def _name(self, position: int) -> str:
        return f"sample {position} of shard {self._place(position)[0]}"


def _steps(stored: Tensor, backbone: DiffusionBackbone, source: Source) -> list[int]:
    """Return where a backbone's tapped timesteps stand among the stored ones.

    Raises:
        ValueError: If one is not there.
    """
    wanted = backbone.timesteps.to(stored)
    same = (stored - wanted[:, None]).abs() < 1e-2
    if not same.any(dim=1).all():
        raise ValueError(
            f"the latents of {source} are those of the timesteps {_listed(stored)}, the backbone "
            f"taps {_listed(wanted)}: set tap_steps and steps to some that are stored"
        )
    return same.int().argmax(dim=1).tolist()


def _listed(timesteps: Tensor) -> str:
    return ", ".join(f"{t:g}" for t in timesteps.tolist())


def _pad(found: list[list[bool]]) -> Tensor:
    """Return ``(B, K)`` bool with False in padding; K >= 1, as the backbones pad entities."""
    width = max(1, *map(len, found))
    return torch.tensor([row + [False] * (width - len(row)) for row in found])
