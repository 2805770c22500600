"""Models of transformers that have a label for each thing they know."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate

from ovseg.annotators.base import Annotator
from ovseg.checkpoint import Checkpoint
from ovseg.vocabulary import Vocabulary


class LabelledAnnotator(Annotator):
    """A model of transformers whose labels are matched with the names of a vocabulary."""

    task: str

    def __init__(
        self,
        model: str,
        revision: str | None,
        local_files_only: bool,
        classes: str,
        min_score: float,
    ) -> None:
        super().__init__()
        if not 0 < min_score < 1:
            raise ValueError(f"min_score is a probability in (0, 1), got {min_score}")
        self.checkpoint = Checkpoint(model, revision, local_files_only)
        self.classes, self.min_score = classes, min_score
        config = self.checkpoint.config
        self.labels = [config.id2label[i] for i in sorted(config.id2label)]
        self.model = self.checkpoint.model(self._kind(config.model_type))
        self.processor = self._processor()
        self.eval()

    @abstractmethod
    def _kind(self, model_type: str) -> type:
        """Return the class of transformers that loads a type of model."""

    def _processor(self) -> Any:
        """Return what makes the model's input: of OneFormer the sentence that says the task too."""
        images = self.checkpoint.image_processor()
        if self.checkpoint.config.model_type != "oneformer":
            return images
        from transformers import OneFormerProcessor

        length = self.checkpoint.config.task_seq_len
        return OneFormerProcessor(images, self.checkpoint.tokenizer(), task_seq_length=length)

    def bind(self, vocabulary: Vocabulary) -> None:
        """Match the model's labels with the vocabulary's names, keys, plurals and synonyms.

        Warns in one line of classes that are asked for and have no label; they are never found.

        Raises:
            ValueError: If no class that is asked for has a label.
        """
        super().bind(vocabulary)
        self.class_of = vocabulary.matched(self.labels)
        asked = vocabulary.select(self.classes)
        self.requested = [i for i in asked if i in self.class_of]
        if not self.requested:
            raise ValueError(
                f"{self.checkpoint.source!r} has labels for none of the {self.classes} classes of "
                f"vocabulary {vocabulary.name!r}; it has {_shortened(self.labels)}"
            )
        if unknown := [vocabulary[i].name for i in asked if i not in self.class_of]:
            warnings.warn(
                f"{self.checkpoint.source!r} has no label for {', '.join(unknown)}: never found",
                stacklevel=2,
            )

    def run(self, images: Tensor) -> tuple[Any, tuple[int, int]]:
        """Return the model's output for images ``(B, 3, H, W)`` uint8 and the size of its input.

        Raises:
            ValueError: If the annotator is not bound, or the processor cuts the images in pieces.
        """
        if not hasattr(self, "requested"):
            raise ValueError("bind the annotator to a vocabulary before annotating")
        options = {"return_tensors": "pt", "input_data_format": "channels_first"}
        if self.checkpoint.config.model_type == "oneformer":
            options["task_inputs"] = [self.task] * len(images)
        inputs = self.processor(list(images.cpu().numpy()), **options)
        pixels = inputs["pixel_values"]
        if len(pixels) != len(images):
            raise ValueError(
                f"{self.checkpoint.source!r} cuts images of {images.shape[-1]} x "
                f"{images.shape[-2]} pixels into several: give it square ones"
            )
        names = ("pixel_values", "pixel_mask", "task_inputs")
        taken = {name: inputs[name].to(self.model.device) for name in names if name in inputs}
        return self.model(**taken), tuple(pixels.shape[-2:])

    def to_image(self, masks: Tensor, seen: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Resize mask logits ``(q, h, w)`` of the model's input to the image, without padding."""
        if not len(masks):
            return masks.new_zeros(0, *size)
        if getattr(self.processor, "do_pad", False) and hasattr(self.processor, "unpad_image"):
            whole = resized(masks[None], seen)
            return self.processor.unpad_image(whole, [size], self.processor.size)[0]
        return resized(masks[None], size)[0]

    def describe(self) -> dict:
        """Return JSON-ready facts; needs `bind`.

        ``trained_on`` are the classes that the model has labels for: it saw masks of them.
        """
        return {
            **self.checkpoint.describe(),
            "requested_classes": list(self.requested),
            "trained_on": sorted(set(self.class_of) - {0}),
            "task": self.task,
            "min_score": self.min_score,
        }


def _shortened(labels: Sequence[str], count: int = 20) -> str:
    rest = len(labels) - count
    return ", ".join(labels[:count]) + (f" and {rest} more" if rest > 0 else "")


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps ``(B, C, h, w)`` bilinearly."""
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)
