"""A trained grounder as an annotator: it labels every name that can be said."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ovseg.annotators.base import Annotator
from ovseg.backbones.base import DiffusionBackbone
from ovseg.grounders.base import check_features, check_precision
from ovseg.grounders.folder import (
    find_grounder,
    folder_digest,
    load_grounder,
    read_config,
    taught_names,
    taught_practices,
)
from ovseg.grounders.partner import check_backbone
from ovseg.structures import Annotation, DiffusionSample
from ovseg.vocabulary import EVERY, Vocabulary


class GrounderAnnotator(Annotator):
    """Annotate by a grounder folder.

    Args:
        folder: What `fit` of a grounding module wrote, a Hub id, or "clipart", the embedded one.

    Raises:
        FileNotFoundError: If there is no grounder.
        ValueError: If it cannot be loaded.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = find_grounder(folder)
        self.config = read_config(self.folder)
        self.grounder = load_grounder(self.folder).requires_grad_(False)

    def bind(self, vocabulary: Vocabulary) -> None:
        """Take the classes of a vocabulary.

        Raises:
            ValueError: If the grounder was trained with masks of a class that is unseen there.
        """
        super().bind(vocabulary)
        names = taught_names(self.config)
        self.trained_on = sorted(vocabulary.taught(names))
        if known := [vocabulary[i].name for i in vocabulary.unseen if i in self.trained_on]:
            how = "may have been" if EVERY in names else "was"
            raise ValueError(
                f"the grounder in {self.folder} {how} trained with masks of {', '.join(known)}, "
                f"which split {vocabulary.split} of {vocabulary.name} calls unseen: train one on "
                "this split, or choose the grounder's own"
            )

    def train(self, mode: bool = True) -> GrounderAnnotator:
        """Stay in eval mode whatever is asked for."""
        return super().train(False)

    def check(self, backbone: DiffusionBackbone) -> None:
        """Refuse a backbone that is not the one the grounder was trained on.

        Raises:
            ValueError: If its digest differs; shows the difference.
        """
        check_backbone(self.config, backbone, self.folder)

    @torch.no_grad()
    def annotate(self, sample: DiffusionSample) -> Annotation:
        """Return masks whose 0.5 is the grounder's own threshold.

        An entity is found where some pixel reaches it; its score is the mean probability of those
        pixels.

        Raises:
            ValueError: If the features are not those that the grounder was built for.
        """
        if sample.features is None:
            raise ValueError("a grounder reads features; the backbone's sample has none")
        check_features(self.grounder.feature_spec, sample.features)
        check_precision(self.grounder, sample.entities.text)
        logits = self.grounder(sample.features, sample.entities)
        masks = _probabilities(logits, sample.images.shape[-2:], self.grounder.threshold)
        masks = masks * sample.entities.valid[..., None, None]
        inside = masks >= 0.5
        scores = (masks * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)
        return Annotation(masks, scores, inside.flatten(2).any(dim=2))

    def describe(self) -> dict:
        """Return JSON-ready facts; needs `bind`.

        ``requested_classes`` are all, for a grounder knows every name; ``trained_on`` are those
        of the bound vocabulary whose masks it has been trained with.
        """
        practices = taught_practices(self.config)
        return {
            "requested_classes": list(self.vocabulary.select("all")),
            "trained_on": self.trained_on,
            "source": self.config["class_path"],
            "split": (self.config.get("vocabulary") or {}).get("split"),
            "threshold": self.config["threshold"],
            "digest": folder_digest(self.folder),
            **({"practices": practices} if practices else {}),
        }


def _probabilities(logits: Tensor, size: torch.Size, threshold: float) -> Tensor:
    """Resize logits and turn them into probabilities with the threshold moved to 0.5."""
    if logits.shape[-2:] != size:
        logits = interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
    level = torch.logit(torch.tensor(threshold, dtype=torch.float64)).item()
    return (logits.float() - level).sigmoid()
