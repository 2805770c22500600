"""Boxes of any name by GroundingDINO, masks of the boxes by Segment Anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ovseg.annotators.assemble import Instances, from_instances
from ovseg.annotators.base import Annotator
from ovseg.checkpoint import Checkpoint
from ovseg.structures import Annotation, DiffusionSample
from ovseg.vocabulary import Vocabulary

DETECTORS = ("grounding-dino", "mm-grounding-dino")
SEGMENTERS = ("sam", "sam2", "sam2_video")


class SamAnnotator(Annotator):
    """Annotate any name: GroundingDINO finds its boxes, Segment Anything their masks.

    All names of an image are asked for at once, and a box goes to the one that has its most
    probable word; names that do not fit into a text that the detector reads are asked for by
    another. A box is one instance; its score is the probability of that word.

    Such models have been trained with boxes and masks of very many things, and nobody lists which;
    so `trained_on` says nothing unless you do. For a zero-shot protocol name here the classes that
    you have to count as known to it: the data set is then refused where they are unseen.

    Args:
        detector: A folder, or a Hub id, of GroundingDINO.
        segmenter: A folder, or a Hub id, of Segment Anything, or of its second version, whose image
            processor needs torchvision.
        detector_revision: Commit, branch or tag on the Hub.
        segmenter_revision: Commit, branch or tag on the Hub.
        local_files_only: Never ask the Hub; use what has been downloaded before.
        classes: Which classes of the vocabulary it is asked for: "seen", "unseen" or "all".
        trained_on: Names of the classes whose masks or boxes it has been trained with.
        box_threshold: Probability that some word of the text must exceed for a box.
        text_threshold: Probability that the best word of a name must exceed for its box.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If one cannot be loaded, or is of another kind.
    """

    def __init__(
        self,
        detector: str = "IDEA-Research/grounding-dino-base",
        segmenter: str = "facebook/sam-vit-huge",
        detector_revision: str | None = None,
        segmenter_revision: str | None = None,
        local_files_only: bool = False,
        classes: str = "seen",
        trained_on: Sequence[str] = (),
        box_threshold: float = 0.35,
        text_threshold: float = 0.25,
    ) -> None:
        super().__init__()
        for name, value in {
            "box_threshold": box_threshold,
            "text_threshold": text_threshold,
        }.items():
            if not 0 < value < 1:
                raise ValueError(f"{name} is a probability in (0, 1), got {value}")
        self.classes, self.known = classes, tuple(trained_on)
        self.thresholds = (box_threshold, text_threshold)
        self.detector = _Detector(Checkpoint(detector, detector_revision, local_files_only))
        self.segmenter = _Segmenter(Checkpoint(segmenter, segmenter_revision, local_files_only))
        self.eval()

    def bind(self, vocabulary: Vocabulary) -> None:
        """Take the classes of a vocabulary.

        Raises:
            ValueError: If it has no such group of classes, or not one of those in `trained_on`.
        """
        super().bind(vocabulary)
        self.requested = vocabulary.select(self.classes)
        self.trained_on = vocabulary.select(self.known)

    @torch.no_grad()
    def annotate(self, sample: DiffusionSample) -> Annotation:
        """Return masks, scores and instances of the requested classes among the entities.

        Raises:
            ValueError: If the annotator is not bound.
        """
        if not hasattr(self, "requested"):
            raise ValueError("bind the annotator to a vocabulary before annotating")
        count = sample.entities.valid.shape[1]
        places = [
            [k for k, entity in enumerate(request.entities) if entity.class_id in self.requested]
            for request in sample.requests
        ]
        names = [
            [request.entities[k].name for k in some]
            for request, some in zip(sample.requests, places, strict=True)
        ]
        images = []
        found = self.detector(sample.images, names, *self.thresholds)
        for image, boxes, some in zip(sample.images, found, places, strict=True):
            belongs = torch.zeros(len(boxes.name), count, dtype=torch.bool, device=image.device)
            belongs[range(len(belongs)), [some[name] for name in boxes.name]] = True
            masks = self.segmenter(image, boxes.corners)
            images.append(Instances(masks, boxes.score, belongs))
        return from_instances(images)

    def describe(self) -> dict:
        """Return JSON-ready facts; needs `bind`. ``trained_on`` is what the user has stated."""
        detector, segmenter = self.detector.facts, self.segmenter.facts
        return {
            "source": f"{detector['source']} + {segmenter['source']}",
            "digest": f"{detector['digest']}+{segmenter['digest']}",
            "requested_classes": list(self.requested),
            "trained_on": sorted(self.trained_on),
            "box_threshold": self.thresholds[0],
            "text_threshold": self.thresholds[1],
            "detector": detector,
            "segmenter": segmenter,
        }


class _Boxes(NamedTuple):
    """Boxes of one image: corners ``(n, 4)`` in pixels, scores ``(n,)``, and n places of names."""

    corners: Tensor
    score: Tensor
    name: list[int]


class _Detector(nn.Module):
    """GroundingDINO: boxes of names."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        from transformers import AutoModelForZeroShotObjectDetection, GroundingDinoProcessor

        _require(checkpoint, DETECTORS, "a detector of names")
        self.facts = checkpoint.describe()
        self.model = checkpoint.model(AutoModelForZeroShotObjectDetection)
        self.processor = GroundingDinoProcessor(
            checkpoint.image_processor(), checkpoint.tokenizer()
        )

    def forward(
        self, images: Tensor, names: list[list[str]], box_threshold: float, text_threshold: float
    ) -> list[_Boxes]:
        """Return the boxes of each image's names; images without names are not looked at."""
        none = _Boxes(images.new_zeros(0, 4).float(), images.new_zeros(0).float(), [])
        found = [none] * len(names)
        texts = [self._texts([name.replace(".", " ") for name in some]) for some in names]
        done = [0] * len(names)
        for turn in range(max(map(len, texts), default=0)):
            asked = [row for row, some in enumerate(texts) if len(some) > turn]
            now = [texts[row][turn] for row in asked]
            boxes = self._find(images[asked], now, box_threshold, text_threshold)
            for row, some, more in zip(asked, now, boxes, strict=True):
                found[row] = _joined(found[row], more, done[row])
                done[row] += len(some)
        return found

    def _texts(self, names: list[str]) -> list[list[str]]:
        """Cut names into texts that the model reads to their end, in order."""
        tokenizer, texts, left = self.processor.tokenizer, [], 0
        most = min(self.model.config.max_text_len, tokenizer.model_max_length)
        most -= tokenizer.num_special_tokens_to_add()
        for name in names:
            length = len(tokenizer(f"{name}.", add_special_tokens=False).input_ids)
            if length > left:
                texts.append([])
                left = most
            texts[-1].append(name)
            left -= length
        return texts

    def _find(
        self, images: Tensor, texts: list[list[str]], box_threshold: float, text_threshold: float
    ) -> list[_Boxes]:
        """Return the boxes of each image's names, all of which are in its text."""
        inputs = self.processor(
            images=list(images.cpu().numpy()),
            text=texts,
            padding=True,
            return_tensors="pt",
            input_data_format="channels_first",
        ).to(images.device)
        output = self.model(**inputs)
        words = self._words_of_names(inputs["input_ids"], max(map(len, texts)))
        height, width = images.shape[-2:]
        corners = _corners(output.pred_boxes) * torch.tensor(
            [width, height, width, height], device=images.device
        )
        found = []
        for box, odds, where in zip(corners, output.logits, words, strict=True):
            probability = odds.sigmoid()  # (Q, T)
            of_name = (probability[:, None, : where.shape[1]] * where).amax(dim=2)  # (Q, K)
            best = of_name.max(dim=1)
            kept = (probability.amax(dim=1) > box_threshold) & (best.values > text_threshold)
            found.append(_Boxes(box[kept], best.values[kept], best.indices[kept].tolist()))
        return found

    def _words_of_names(self, tokens: Tensor, count: int) -> Tensor:
        """Return ``(B, K, L)`` bool: token L is a word of name K; a full stop ends each name."""
        tokenizer = self.processor.tokenizer
        stop = tokens == tokenizer.convert_tokens_to_ids(".")
        special = torch.tensor(tokenizer.all_special_ids, device=tokens.device)
        name = (stop.cumsum(dim=1)).masked_fill(stop | torch.isin(tokens, special), -1)
        return name[:, None] == torch.arange(count, device=tokens.device)[:, None]


def _joined(first: _Boxes, more: _Boxes, names: int) -> _Boxes:
    """Add boxes whose names are counted from a later one on."""
    return _Boxes(
        torch.cat([first.corners, more.corners]),
        torch.cat([first.score, more.score]),
        first.name + [names + name for name in more.name],
    )


class _Segmenter(nn.Module):
    """Segment Anything: masks of boxes."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        from transformers import AutoModelForMaskGeneration, Sam2Processor, SamProcessor

        _require(checkpoint, SEGMENTERS, "a segmenter of boxes")
        self.facts = checkpoint.describe()
        kind = SamProcessor if checkpoint.config.model_type == "sam" else Sam2Processor
        self.processor = kind(checkpoint.image_processor())
        self.model = checkpoint.model(AutoModelForMaskGeneration)

    def forward(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Return masks ``(n, H, W)`` float in [0, 1] of boxes ``(n, 4)`` of an image."""
        if not len(boxes):
            return boxes.new_zeros(0, *image.shape[-2:])
        inputs = self.processor(
            images=[image.cpu().numpy()],
            input_boxes=[boxes.tolist()],
            return_tensors="pt",
            input_data_format="channels_first",
        )
        output = self.model(
            pixel_values=inputs["pixel_values"].to(image.device),
            input_boxes=inputs["input_boxes"].float().to(image.device),
            multimask_output=False,
        )
        sizes = [inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        logits = self.processor.post_process_masks(output.pred_masks, *sizes, binarize=False)
        return logits[0][:, 0].sigmoid()


def _require(checkpoint: Checkpoint, kinds: Sequence[str], what: str) -> None:
    kind = checkpoint.config.model_type
    if kind not in kinds:
        raise ValueError(
            f"{checkpoint.source!r} is a model of type {kind}; {what} is one of {', '.join(kinds)}"
        )


def _corners(boxes: Tensor) -> Tensor:
    """Turn boxes (centre, size) ``(..., 4)`` into (left, top, right, bottom) inside [0, 1]."""
    centre, size = boxes.chunk(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1).clamp(0, 1)
