"""SegFormer, MaskFormer and Mask2Former of transformers as segmenters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.checkpoint import Checkpoint
from ovseg.losses_segmentation import CrossEntropy, PixelLoss
from ovseg.pretrained import quiet
from ovseg.segmenters.base import Segmenter
from ovseg.segmenters.loading import said_by_names, say_loaded
from ovseg.segmenters.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from ovseg.segmenters.queries import on_pixels, on_points, query_loss, semantic_logits

FAMILIES = {
    "segformer": "SegformerForSemanticSegmentation",
    "maskformer": "MaskFormerForInstanceSegmentation",
    "mask2former": "Mask2FormerForUniversalSegmentation",
}
"""The class of each type of model."""
HEADS = {
    "segformer": ("decode_head.",),
    "maskformer": ("class_predictor.", "criterion."),
    "mask2former": ("class_predictor.", "criterion."),
}
"""What may be newly made beside pretrained weights."""
CLASSIFIER = re.compile(r"class_predictor\.|\.classifier\.")
"""In the name of the tensors whose rows are the classes."""
UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls a class that nobody has named."""
MASK_LOSSES = {"maskformer": on_pixels, "mask2former": on_points}
"""How the masks of queries are supervised, where a model answers by queries."""


class TransformersSegmenter(Segmenter):
    """A segmenter of transformers, pretrained or from scratch.

    What depends on the number of classes is newly made if that number is another one. No image
    processor is needed: images are normalised here and keep their size. Logits and losses of
    models that answer by queries are described in `ovseg.segmenters.queries`.

    Args:
        num_classes: Number of classes with background.
        model: A folder, or a Hub id, of pretrained weights (safetensors alone).
        config: Instead of `model`, the configuration of a random model: its `model_type` and, as in
            a config.json, whatever differs from the type's defaults.
        revision: Commit, branch or tag on the Hub.
        local_files_only: Never ask the Hub; use what has been downloaded before.
        loss: Loss of the label map of a SegFormer; cross-entropy by default. Models that answer by
            queries have one of their own.
        mean: RGB mean that is subtracted, in 0..255.
        std: RGB standard deviation that is divided by.

    Raises:
        ValueError: If not exactly one of model and config is given, the type is none of the three,
            the configuration is wrong, or the weights are not those of such a model.
        FileNotFoundError: If there is no model.
    """

    def __init__(
        self,
        num_classes: int,
        model: str | None = None,
        config: dict[str, Any] | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        loss: PixelLoss | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(num_classes)
        if (model is None) == (config is None):
            raise ValueError("give exactly one of model (a folder or Hub id) and config (a dict)")
        if model is not None:
            checkpoint = Checkpoint(model, revision, local_files_only)
            self.kind = _family(checkpoint.config.model_type)
            self.model, self.learnt_from = _load(checkpoint, num_classes)
        else:
            self.kind = _family(config.get("model_type"))
            self.model = _build(config, num_classes)
        if loss is not None and self.kind in MASK_LOSSES:
            raise ValueError(f"a {self.kind} has a loss of its own: leave `loss` out")
        self.init_args = {
            "config": self.model.config.to_dict(),
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
        }
        self.pixel_loss = loss or CrossEntropy()
        self.normalise = Normalise(mean, std)
        self._freeze_unused()

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, 3, H, W)`` uint8 RGB to logits ``(B, N, H, W)``."""
        output, size = self.model(pixel_values=self.normalise(images)), tuple(images.shape[-2:])
        if self.kind in MASK_LOSSES:
            return semantic_logits(output.class_queries_logits, output.masks_queries_logits, size)
        return F.interpolate(output.logits.float(), size, mode="bilinear", align_corners=False)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar training loss; ``labels (B, H, W)`` int64, 255 = ignore."""
        if self.kind not in MASK_LOSSES:
            return self.pixel_loss(self(images), labels)
        output = self.model(pixel_values=self.normalise(images), output_auxiliary_logits=True)
        names = ("class_queries_logits", "masks_queries_logits")
        layers = [{name: output[name] for name in names}, *(output.auxiliary_logits or ())]
        # of a matrix of costs in half precision the matcher knows nothing
        with torch.autocast(images.device.type, enabled=False):
            return query_loss(layers, labels, self.model.criterion, MASK_LOSSES[self.kind])

    def _freeze_unused(self) -> None:
        """Freeze the last norm of a Swin, which only its classifier reads: DDP waits for it."""
        for module in self.model.modules():
            if type(module).__name__ in ("SwinModel", "MaskFormerSwinModel"):
                module.layernorm.requires_grad_(False)


def _family(model_type: str | None) -> str:
    if model_type not in FAMILIES:
        raise ValueError(
            f"TransformersSegmenter takes {', '.join(FAMILIES)}; the model is of type {model_type}"
        )
    return model_type


def _class_of(model_type: str) -> type:
    import transformers

    return getattr(transformers, FAMILIES[model_type])


def _build(config: dict[str, Any], num_classes: int) -> nn.Module:
    """Build a random model."""
    from transformers import AutoConfig

    try:
        with quiet():
            made = AutoConfig.for_model(**{**config, "num_labels": num_classes})
            return _class_of(made.model_type)(made)
    except Exception as error:  # transformers raises a dozen kinds
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"transformers cannot build this {config['model_type']}: {reason}"
        ) from error


def _load(checkpoint: Checkpoint, num_classes: int) -> tuple[nn.Module, dict[str, list[str]]]:
    """Load pretrained weights, and say what was newly made for these classes.

    Returns:
        The model, and its `learnt_from`.
    """
    kind = checkpoint.config.model_type
    options = {
        "num_labels": num_classes,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
        "use_safetensors": True,
        "dtype": torch.float32,
    }
    model, facts = checkpoint.part(_class_of(kind), options)
    made = {*facts["missing_keys"], *(key for key, *_ in facts["mismatched_keys"])}
    if wrong := sorted(key for key in made if not key.startswith(HEADS[kind])):
        raise ValueError(
            f"the weights of {checkpoint.source!r} are not those of a {kind}: {len(wrong)} of its "
            f"tensors are missing or of another shape, {wrong[0]} for one"
        )
    say_loaded(checkpoint.source, len(model.state_dict()), made, facts["unexpected_keys"])
    new = any(CLASSIFIER.search(key) for key in made)
    return model.train(), _said_of_training(checkpoint.config, new)


def _said_of_training(config: Any, new_classifier: bool) -> dict[str, list[str]]:
    """Return what a model's config says of its training, as `Segmenter.learnt_from` has it."""
    if not any("Segmentation" in name for name in config.architectures or ()):
        return {}
    names = [config.id2label[number] for number in sorted(config.id2label)]
    said = said_by_names(None if all(map(UNNAMED.fullmatch, names)) else names)
    return {key: value for key, value in said.items() if key != "classes" or not new_classifier}
