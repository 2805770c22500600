"""Names that a grounding module is asked for beside those of the prompts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ovseg import controls
from ovseg.backbones.base import DiffusionBackbone
from ovseg.structures import Batch, Entities, Entity, Request
from ovseg.vocabulary import Vocabulary


def embed(backbone: DiffusionBackbone, words: Mapping[int, str]) -> dict[int, Tensor]:
    """Return the embedding ``(D,)`` of a word of each class, by class id."""
    entities = tuple(Entity(class_id, word) for class_id, word in words.items())
    text = backbone.embed([Request(0, 0, "", entities)])[0]
    return dict(zip(words, text, strict=False))  # without words there is one row of padding


class AskedNames:
    """Names that are in no picture, and other words for those that are.

    Args:
        backbone: Embeds them.
        vocabulary: Classes and split.
    """

    def __init__(self, backbone: DiffusionBackbone, vocabulary: Vocabulary) -> None:
        classes = vocabulary.classes
        self._kinds = (vocabulary.seen, vocabulary.unseen)
        self._names = _table(embed(backbone, {c.id: c.name for c in classes}))
        words = {c.id: c.synonyms[0] for c in classes if c.synonyms}
        self._synonyms = None
        if len(words) == len(classes):
            self._synonyms = _table(embed(backbone, words))

    def renamed(self, entities: Entities) -> dict[str, Tensor]:
        """Return other embeddings ``(B, K, D)`` of the same entities, by the control's name.

        "synonyms" are there if every class has one.
        """
        words = {"random_names": controls.random_names(entities.text, entities.class_ids)}
        if self._synonyms is not None:
            words["synonyms"] = self._synonyms.to(entities.text)[entities.class_ids]
        return words

    def absent(self, batch: Batch) -> Entities:
        """Return as many names that are not in the pictures, seen for seen, unseen for unseen."""
        ids = controls.absent_classes(batch.entities.class_ids, batch.indices, self._kinds)
        return Entities(self._names.to(batch.entities.text)[ids], ids, ids > 0)


def _table(text: Mapping[int, Tensor]) -> Tensor:
    """Return ``(N + 1, D)``, zeros for background; the classes' ids are 1 to N."""
    rows = [text[class_id] for class_id in sorted(text)]
    return torch.stack([torch.zeros_like(rows[0]), *rows])
