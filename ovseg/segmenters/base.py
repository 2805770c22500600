"""The contract of a segmenter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor, nn

from ovseg.kept import own_arguments


class Segmenter(nn.Module, ABC):
    """A semantic segmentation network. Subclasses take ``num_classes`` first.

    Attributes:
        init_args: The subclass's own constructor arguments, kept so that it can be saved. One whose
            arguments name files replaces it by arguments that do not.
        learnt_from: What the files of its weights say of their training, nothing by default: the
            keys or names of their `classes`, if the weights depend on them, those that they were
            `trained_on` masks of (see `Vocabulary.taught`), and the `practices`. A checkpoint of
            `fit` has all three.
    """

    learnt_from: Mapping[str, list[str]] = MappingProxyType({})

    def __new__(cls, *args, **kwargs):
        """Record the constructor's own arguments in `init_args`."""
        self = super().__new__(cls)
        object.__setattr__(self, "init_args", own_arguments(cls, 1, args, kwargs))
        return self

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, 3, H, W)`` uint8 RGB to logits ``(B, N, H, W)`` of the same size."""

    @abstractmethod
    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar training loss; ``labels (B, H, W)`` int64, 255 = ignore."""
