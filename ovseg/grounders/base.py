"""The contract of a grounding module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor, nn

from ovseg.kept import own_arguments
from ovseg.structures import Entities, Features, FeatureSpec


class Grounder(nn.Module, ABC):
    """Turn backbone features and names into one mask per name.

    Subclasses take ``(feature_spec, text_width, *own arguments)``; the first two come from the
    backbone, the others from configuration. A baseline without parameters is a Grounder too.

    Attributes:
        threshold: Probability from which a pixel belongs to the entity.
        reads_names: Whether masks depend on `Entities.text`; the controls of the names need it.
        reads_attention: Whether masks depend on `Features.attention`; then its folder is bound to
            the layers from which that is collected.
        learns_presence: Whether `presence` has parameters; they are trained beside the masks.
        init_args: The subclass's own constructor arguments, kept so that it can be saved.
        learnt_from: What the folder that it was loaded from says of its training, nothing by
            default: names of the classes that it was `trained_on` masks of, and the `practices`.
    """

    threshold: float = 0.5
    reads_names: bool = True
    reads_attention: bool = False
    learns_presence: bool = False
    learnt_from: Mapping[str, list[str]] = MappingProxyType({})

    def __new__(cls, *args, **kwargs):
        """Record the constructor's own arguments in `init_args`."""
        self = super().__new__(cls)
        object.__setattr__(self, "init_args", own_arguments(cls, 2, args, kwargs))
        return self

    def __init__(self, feature_spec: FeatureSpec, text_width: int) -> None:
        super().__init__()
        self.feature_spec = feature_spec
        self.text_width = text_width

    def meet(self, text: Tensor) -> None:  # noqa: B027 - most need not know
        """Be told, before the training, the embeddings ``(R, D)`` of the names in it."""

    def read(self, features: Features) -> Features:
        """Do once what does not depend on names, so that `forward` can be asked for many lists.

        Returns:
            Features for `forward` and `presence` of this very grounder, as it is now.
        """
        return features

    @abstractmethod
    def forward(self, features: Features, entities: Entities) -> Tensor:
        """Return logits ``(B, K, h, w)`` (any h, w; sigmoid gives probabilities).

        In eval mode a batch of N equals N batches of one, and padding entities change nothing.
        """

    def presence(self, features: Features, entities: Entities, logits: Tensor) -> Tensor:
        """Return logits ``(B, K)`` of each name being in the picture at all.

        Args:
            features: As in `forward`.
            entities: As in `forward`.
            logits: What `forward` returned; here, the highest of each mask is taken.
        """
        return logits.amax(dim=(2, 3))


def check_precision(grounder: nn.Module, text: Tensor) -> None:
    """Check that a grounder computes where its inputs are, and in their dtype.

    Args:
        grounder: One without parameters takes anything.
        text: Embeddings of the names.

    Raises:
        ValueError: If not.
    """
    weight = next(grounder.parameters(), text)
    if (weight.dtype, weight.device) != (text.dtype, text.device):
        own, given = (f"{str(t.dtype)[6:]} on {t.device}" for t in (weight, text))
        raise ValueError(
            f"the grounder's weights are {own}, the names and features that it is given {given}: "
            "bring it there by `to`; in training, choose the precision 32-true or a mixed one"
        )


def check_features(spec: FeatureSpec, features: Features) -> None:
    """Check that features are those that a grounder was built for.

    Raises:
        ValueError: If a tap or probe is missing, or its steps, branches, channels, heads or width
            differ.
    """
    for tap, wanted in spec.taps.items():
        if tap not in features.maps:
            raise ValueError(
                f"the grounder needs the tap {tap!r}; the backbone has {', '.join(features.maps)}"
            )
        shape, got = (spec.steps, spec.branches, wanted.channels), features.maps[tap].shape
        if len(got) != 6 or tuple(got[1:4]) != shape:
            raise ValueError(
                f"the grounder needs (steps, branches, channels) = {shape} at the tap {tap!r}; "
                f"the backbone gives a map of shape {tuple(got)}"
            )
    for name, wanted in spec.probes.items():
        if name not in features.probes:
            raise ValueError(
                f"the grounder needs the probe {name!r}; the backbone has "
                f"{', '.join(features.probes) or 'none'}"
            )
        shape = (spec.steps, wanted.channels, wanted.width)
        if (got := tuple(features.probes[name].queries.shape[1:4])) != shape:
            raise ValueError(
                f"the grounder needs (steps, heads, width) = {shape} of the probe {name!r}; the "
                f"backbone gives {got}"
            )
