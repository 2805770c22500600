"""Drawn scenes with exact label maps: the clip-art world's real photographs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from ovseg.clipart.scenes import compose, nouns, render, rng
from ovseg.data.base import IGNORED_UNSEEN, Stream
from ovseg.structures import IGNORE, Batch
from ovseg.vocabulary import Vocabulary


class DrawnScenes(Stream):
    """Drawn scenes of the vocabulary's classes, deterministic in (seed, position).

    Args:
        size: Number of scenes.
        seed: Seed; another one gives other scenes.
        objects: Objects per scene, 1 to 4; several numbers take turns.
        classes: "all", "seen", "unseen", or "mixed" (seen and unseen take turns within a scene).
        labelled: "all", or "seen": pixels of unseen classes are ignored.

    Raises:
        ValueError: If size, objects or labelled are out of range.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        objects: Sequence[int] = (2,),
        classes: str = "all",
        labelled: Literal["all", "seen"] = "all",
    ) -> None:
        objects = tuple(objects)
        if size < 1:
            raise ValueError(f"size must be >= 1, got {size}")
        if not objects or not all(1 <= n <= 4 for n in objects):
            raise ValueError(f"objects must be numbers from 1 to 4, got {list(objects)}")
        if labelled not in ("all", "seen"):
            raise ValueError(f'labelled must be "all" or "seen", got {labelled!r}')
        self.size, self.seed, self.objects, self.classes = size, seed, objects, classes
        self.labelled = labelled

    def bind(self, vocabulary: Vocabulary) -> None:
        """Check that every class can be drawn.

        Raises:
            ValueError: If the vocabulary holds a name that is no noun of the clip-art world.
        """
        super().bind(vocabulary)
        unknown = [c.name for c in vocabulary.classes if c.name not in nouns()]
        if unknown:
            raise ValueError(
                f"the clip-art world cannot draw {', '.join(unknown[:3])} of vocabulary "
                f"{vocabulary.name!r}; use the clipart vocabulary"
            )

    def describe(self) -> dict:
        """Return the arguments."""
        kept = {"size": self.size, "seed": self.seed, "objects": list(self.objects)}
        return {**super().describe(), **kept, "classes": self.classes, "labelled": self.labelled}

    def taught_classes(self) -> set[int]:
        """Return the classes that are drawn and not ignored: their masks are exact."""
        drawn = set(self.vocabulary.select("all" if self.classes == "mixed" else self.classes))
        return drawn & set(self.vocabulary.select(self.labelled))

    def practices(self) -> set[str]:
        """Return whether pixels of unseen classes are ignored."""
        return {IGNORED_UNSEEN} if self.labelled == "seen" != self.classes else set()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        """Draw these scenes: images and labels."""
        drawn = [self._draw(int(p)) for p in positions]
        images = np.stack([image for image, _ in drawn]).transpose(0, 3, 1, 2)
        return Batch(
            indices=torch.as_tensor(list(positions), dtype=torch.long),
            images=torch.from_numpy(np.ascontiguousarray(images)),
            labels=torch.from_numpy(np.stack([labels for _, labels in drawn])),
        )

    def _draw(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        r = rng(self.seed, position)
        ids = self._class_ids(r, self.objects[position % len(self.objects)])
        image, owner = render(compose(r, [self.vocabulary[i].name for i in ids]))
        labelled = {0, *self.vocabulary.select(self.labelled)}
        shown = [i if i in labelled else IGNORE for i in (0, *ids)]
        return image, np.array(shown, dtype=np.int64)[owner]

    def _class_ids(self, r: np.random.Generator, count: int) -> list[int]:
        if self.classes != "mixed":
            pool = self.vocabulary.select(self.classes)
            return [pool[i] for i in r.choice(len(pool), count, replace=False)]
        seen = r.permutation(self.vocabulary.seen)
        unseen = r.permutation(self.vocabulary.unseen)
        picked = [(seen, unseen)[n % 2][n // 2] for n in range(count)]
        return [int(i) for i in r.permutation(picked)]
