"""A semantic segmenter of known classes as an annotator: the detector of stage 1, or a labeller.

The shipped one, "clipart", was trained on drawn scenes.
"""

from __future__ import annotations

import torch

from ovseg.annotators.assemble import channels_of, from_regions
from ovseg.annotators.base import Annotator
from ovseg.embedded import locate
from ovseg.segmenters.folder import load_segmenter
from ovseg.structures import Annotation, DiffusionSample
from ovseg.vocabulary import Vocabulary


class MMSegAnnotator(Annotator):
    """Annotate with a segmenter that knows some classes.

    The mask of an entity is the probability of its class against the strongest other one, as
    `from_regions` has it.

    Args:
        checkpoint_folder: Folder that `fit` of a segmentation module wrote to its `output`, or
            `tools/import_segmenter.py` from MMSegmentation's files; "clipart" is the shipped one.
        classes: Which classes of the vocabulary it is asked for: "seen", "unseen" or "all".
        min_area: Smallest area of an entity that counts as found, as a share of the image.
        min_score: Smallest mean probability over its area that counts as found.
        others_compete: Whether a pixel may be given to background, or to a class that was not
            requested, and so to nobody. False where it cannot be one: images whose seen classes
            and background are labelled show unseen classes in the rest.

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
        others_compete: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= min_area < 1:
            raise ValueError(f"min_area is a share of the image in [0, 1), got {min_area}")
        self.source = checkpoint_folder
        self.classes = classes
        self.min_area = min_area
        self.min_score = min_score
        self.others_compete = others_compete
        self.loaded = load_segmenter(locate(checkpoint_folder, "annotator"))
        self.segmenter, self.keys = self.loaded.segmenter, self.loaded.keys
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
        self.trained_on = sorted(ids[key] for key in self.loaded.trained_on if key in ids)
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
        logits = self.segmenter(sample.images)
        if not self.others_compete:
            kept = torch.tensor([self.channels[i] for i in self.requested], device=logits.device)
            logits = torch.full_like(logits, -torch.inf).index_copy(1, kept, logits[:, kept])
        probabilities = logits.softmax(dim=1)
        channel, asked = channels_of(
            sample.entities.class_ids, {i: self.channels[i] for i in self.requested}
        )
        asked = asked & sample.entities.valid
        return from_regions(probabilities, channel, asked, self.min_area, self.min_score)

    def describe(self) -> dict:
        """Return facts for `dataset.json`."""
        facts = {
            "source": f"mmseg:{self.source}",
            "digest": self.loaded.digest,
            "requested_classes": list(self.requested),
            "trained_on": self.trained_on,
            "min_area": self.min_area,
            "min_score": self.min_score,
        }
        if self.loaded.practices:
            facts["practices"] = self.loaded.practices
        return facts if self.others_compete else facts | {"others_compete": False}
