"""A semantic segmenter of known classes as the detector of stage 1.

The annotator is a folder: ``config.json`` (the segmenter's class and arguments, the keys of its
classes) and ``model.safetensors``. The shipped one, "clipart", was trained on drawn scenes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from pkgutil import resolve_name

import torch
from safetensors.torch import load_file, save_file

from ovseg.annotators.assemble import channels_of, from_regions
from ovseg.annotators.base import Annotator
from ovseg.embedded import locate
from ovseg.segmenters.base import Segmenter
from ovseg.structures import Annotation, DiffusionSample
from ovseg.vocabulary import Vocabulary

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class MMSegAnnotator(Annotator):
    """Annotate with a segmenter that knows some classes.

    The mask of an entity is the probability of its class against the strongest other one, as
    `from_regions` has it. Classes that were not requested still compete.

    Args:
        checkpoint_folder: Folder written by `save_annotator`, or "clipart" for the shipped one.
        classes: Which classes of the vocabulary it is asked for: "seen", "unseen" or "all".
        min_area: Smallest area of an entity that counts as found, as a share of the image.
        min_score: Smallest mean probability over its area that counts as found.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        ValueError: If the folder's weights do not fit its configuration.
    """

    def __init__(
        self,
        checkpoint_folder: str,
        classes: str = "seen",
        min_area: float = 0.005,
        min_score: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 <= min_area < 1:
            raise ValueError(f"min_area is a share of the image in [0, 1), got {min_area}")
        self.source = checkpoint_folder
        self.classes = classes
        self.min_area = min_area
        self.min_score = min_score
        self.segmenter, self.keys, self.digest = load_annotator(checkpoint_folder)
        self.requires_grad_(False).eval()

    def bind(self, vocabulary: Vocabulary) -> None:
        """Map the segmenter's channels to class ids and select those that it is asked for.

        Raises:
            ValueError: If it knows none of the classes asked for.
        """
        super().bind(vocabulary)
        ids = {c.key: c.id for c in vocabulary.classes}
        asked = set(vocabulary.select(self.classes))
        # channel 0 of the segmenter is background; channels of foreign classes stay unused
        self.channels = {ids[key]: n for n, key in enumerate(self.keys, 1) if key in ids}
        self.requested = sorted(asked & set(self.channels))
        if not self.requested:
            raise ValueError(
                f"annotator {self.source!r} knows none of the {self.classes} classes of vocabulary "
                f"{vocabulary.name!r}; it knows {', '.join(self.keys)}"
            )

    @torch.no_grad()
    def annotate(self, sample: DiffusionSample) -> Annotation:
        """Return masks of the requested classes among the sample's entities."""
        if not hasattr(self, "requested"):
            raise ValueError("bind the annotator to a vocabulary before annotating")
        probabilities = self.segmenter(sample.images).softmax(dim=1)
        channel, asked = channels_of(
            sample.entities.class_ids, {i: self.channels[i] for i in self.requested}
        )
        asked = asked & sample.entities.valid
        return from_regions(probabilities, channel, asked, self.min_area, self.min_score)

    def describe(self) -> dict:
        """Return facts for `dataset.json`."""
        return {
            "source": f"mmseg:{self.source}",
            "digest": self.digest,
            "requested_classes": list(self.requested),
            "trained_on": sorted(self.channels),
        }


def save_annotator(segmenter: Segmenter, folder: str | Path, vocabulary: Vocabulary) -> None:
    """Write an annotator folder from a trained `MMSegSegmenter` of all classes of a vocabulary.

    Raises:
        ValueError: If the segmenter's number of classes is not the vocabulary's.
    """
    if segmenter.num_classes != vocabulary.num_classes:
        raise ValueError(
            f"the segmenter has {segmenter.num_classes} classes, vocabulary {vocabulary.name!r} "
            f"has {vocabulary.num_classes} with background"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = type(segmenter)
    config = {
        "segmenter": {
            "class_path": f"{kind.__module__}.{kind.__qualname__}",
            "init_args": {"num_classes": segmenter.num_classes, **segmenter.init_args},
        },
        "classes": [c.key for c in vocabulary.classes],
        "vocabulary": vocabulary.name,
    }
    state = {
        key: value.detach().cpu().contiguous() for key, value in segmenter.state_dict().items()
    }
    save_file(state, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_annotator(folder: str) -> tuple[Segmenter, list[str], str]:
    """Return the segmenter of an annotator folder (float32), its class keys and its digest.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        ValueError: If the weights do not fit the configuration.
    """
    path = locate(folder, "annotator")
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"annotator folder {folder!r} has no {name} ({path})")
    text = (path / CONFIG).read_text(encoding="utf-8")
    config = json.loads(text)
    segmenter = _instantiate(**config["segmenter"])
    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in load_file(path / WEIGHTS).items()
    }
    try:
        segmenter.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"annotator folder {folder!r}: {reason}") from None
    digest = hashlib.sha256(text.encode() + (path / WEIGHTS).read_bytes()).hexdigest()[:16]
    return segmenter, list(config["classes"]), digest


def _instantiate(class_path: str, init_args: dict) -> Segmenter:
    kind = resolve_name(class_path)
    if not (isinstance(kind, type) and issubclass(kind, Segmenter)):
        raise ValueError(f"{class_path} is no Segmenter")
    return kind(**init_args)
