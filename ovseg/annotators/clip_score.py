"""How well CLIP finds each name in the picture, as a fact about another annotator's masks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ovseg.annotators.base import Annotator, AroundAnnotator
from ovseg.checkpoint import Checkpoint
from ovseg.structures import Annotation, DiffusionSample


class ClipScoreAnnotator(AroundAnnotator):
    """Annotate by one annotator, and say of each entity how similar CLIP finds image and name.

    The score is that of CLIPScore (Hessel et al. 2021) without its factor: the cosine of the
    embeddings of the image and of a text with the name, 0 if it is negative. Masks, scores, found
    and instances are the annotator's, untouched; `QualityFilter` has ``min_clip``.

    Args:
        annotator: Whose masks they are.
        model: A folder, or a Hub id, of a CLIP model of transformers, safetensors alone.
        text: What is compared with the image, with the place ``{name}``.
        revision: Commit, branch or tag on the Hub.
        local_files_only: Never ask the Hub; use what has been downloaded before.

    Raises:
        FileNotFoundError: If there is no model.
        ValueError: If it is no CLIP model or cannot be loaded, or the text has no place.
    """

    def __init__(
        self,
        annotator: Annotator,
        model: str,
        text: str = "a photo of a {name}",
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        from transformers import CLIPModel

        super().__init__(annotator)
        if text.count("{name}") != 1:
            raise ValueError(f"the text needs {{name}} once, got {text!r}")
        self.checkpoint = Checkpoint(model, revision, local_files_only)
        if (kind := self.checkpoint.config.model_type) != "clip":
            raise ValueError(f"{model!r} is a model of type {kind}; ClipScoreAnnotator takes clip")
        self.text = text
        self.model = self.checkpoint.model(CLIPModel)
        self.processor = self.checkpoint.image_processor()
        self.tokenizer = self.checkpoint.tokenizer()

    @torch.no_grad()
    def annotate(self, sample: DiffusionSample) -> Annotation:
        """Return the annotation with the similarity of each entity as `clip`; 0 in padding."""
        annotation = self.annotator.annotate(sample)
        clip = torch.zeros_like(annotation.scores)
        names = [[entity.name for entity in request.entities] for request in sample.requests]
        if any(names):
            similar = self._similar(sample.images, [name for row in names for name in row])
            start = 0
            for row, own in enumerate(names):
                clip[row, : len(own)] = similar[row, start : start + len(own)].to(clip)
                start += len(own)
        return replace(annotation, clip=clip)

    def _similar(self, images: Tensor, names: list[str]) -> Tensor:
        """Return the cosines ``(B, N)`` of images ``(B, 3, H, W)`` uint8 and N names, >= 0."""
        pixels = self.processor(
            list(images.cpu().numpy()), return_tensors="pt", input_data_format="channels_first"
        )["pixel_values"]
        texts = [self.text.replace("{name}", name) for name in names]
        words = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        words = {key: words[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
        output = self.model(**words, pixel_values=pixels.to(self.model.device))
        return (output.image_embeds @ output.text_embeds.T).clamp(0, 1)

    def describe(self) -> dict:
        """Return JSON-ready facts: the annotator's, and which CLIP is asked what."""
        facts = self.annotator.describe()
        own = {**self.checkpoint.describe(), "text": self.text}
        return {**facts, "digest": f"{facts['digest']}+{own['digest']}", "clip": own}
