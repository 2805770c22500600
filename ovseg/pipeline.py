"""Prompts and names to images and masks, in one call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ovseg.backbones.base import DiffusionBackbone
from ovseg.grounders.base import Grounder, check_precision
from ovseg.grounders.card import make_card, own_results, read_results
from ovseg.grounders.folder import (
    find_grounder,
    grounder_config,
    known_facts,
    load_grounder,
    read_config,
    weights_digest,
    write_folder,
)
from ovseg.grounders.partner import build_backbone, spec_differences
from ovseg.structures import Entities, Entity, Features, Request, to_label_map
from ovseg.vocabulary import Vocabulary


@dataclass
class GroundedImages:
    """Images and the masks of the names asked for.

    Where one prompt or picture was given, masks and labels are ``(H, W)``; where a list was given,
    even of one, they are ``(N, H, W)``.

    Attributes:
        images: The N images.
        names: All names, in the order they were first given.
        masks: bool mask of each name; masks of different names may overlap. A name that was not
            asked for in an image has an empty mask there.
        labels: int64: 0 where no name is, else 1 + the position in ``names`` of the likeliest one.
        probabilities: float32 in [0, 1] of each name.
    """

    images: list[Image.Image]
    names: list[str]
    masks: dict[str, NDArray[np.bool_]]
    labels: NDArray[np.int64]
    probabilities: dict[str, NDArray[np.float32]]


class GroundedDiffusion(ModelHubMixin):
    """A text-to-image model that says where in its images each name is.

    What it is saved as, what it is loaded from and what lies on the Hub is a grounder folder;
    `push_to_hub` is that of huggingface_hub.

    Args:
        backbone: Makes images and features.
        grounder: Trained on features of that backbone.
        vocabulary: Classes and split that the grounder was trained with; needed to save it. If it
            was loaded from a folder, other classes that it was taught there count too.

    Raises:
        ValueError: If the grounder needs other features; shows the difference.
    """

    def __init__(
        self,
        backbone: DiffusionBackbone,
        grounder: Grounder,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        if changes := spec_differences(grounder.feature_spec, backbone.feature_spec):
            raise ValueError(
                "the grounder (there) needs other features than the backbone (here) gives: "
                f"{'; '.join(changes)}"
            )
        self.backbone, self.grounder = backbone, grounder.eval()
        self.trained_on = None if vocabulary is None else known_facts(grounder, vocabulary)
        self._measured: tuple[str, dict] | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        backbone: DiffusionBackbone | None = None,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> GroundedDiffusion:
        """Load a grounder folder and the backbone that it was trained on.

        Weights are read from safetensors alone, and classes only from what is installed here.

        Args:
            source: A grounder folder, a Hub id such as "owner/name", or "clipart", the embedded
                world.
            backbone: Use this one instead of building the one that the folder names.
            revision: Commit, branch or tag of the grounder on the Hub.
            local_files_only: Never ask the Hub, neither for the grounder nor for the backbone that
                is built; the folder does not decide that.

        Raises:
            FileNotFoundError: If there is no grounder, or no model where it says.
            ValueError: If they do not fit together; shows the difference.
        """
        folder = find_grounder(source, revision, local_files_only)
        config = read_config(folder)
        if backbone is None:
            backbone = build_backbone(config, source, local_files_only)
        model = cls(backbone, load_grounder(folder, backbone))
        model.trained_on = config.get("vocabulary")
        digest = weights_digest(model.grounder)
        if (results := own_results(folder, digest)) is not None:
            model._measured = digest, results
        return model

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        results: str | Path | None = None,
        config: dict | None = None,
        model_card_kwargs: dict | None = None,
    ) -> None:
        """Write a grounder folder with its model card, as a whole or not at all.

        Numbers that came with the folder it was loaded from stay, unless weights or threshold
        have changed since.

        Args:
            save_directory: Where to; an older grounder there is replaced.
            results: The ``results.json`` of an `ovseg test` of this very grounder, for the card.
            config: Not used: ``config.json`` follows from the model. `push_to_hub` passes it.
            model_card_kwargs: ``{"results": PATH}``, another way of saying it, that of
                `push_to_hub`.

        Raises:
            FileNotFoundError: If there are no such results.
            ValueError: If the folder holds something else, the results are of something else, or
                the vocabulary is not known.
        """
        scores = self._results(**({"results": results} | (model_card_kwargs or {})))
        write_folder(save_directory, self.grounder, self.backbone, self._trained_on(), scores)

    def generate_model_card(self, results: str | Path | None = None) -> ModelCard:
        """Return the model card; arguments and errors are those of `save_pretrained`."""
        config = grounder_config(self.grounder, self.backbone, self._trained_on())
        return make_card(config, self._results(results))

    def _results(self, results: str | Path | None) -> dict[str, dict] | None:
        digest = weights_digest(self.grounder)
        if results is not None:
            return read_results(results, digest)
        return self._measured[1] if self._measured and self._measured[0] == digest else None

    def _trained_on(self) -> dict:
        if not self.trained_on:
            raise ValueError(
                "it is not known which classes the grounder was trained with; build the model "
                "with GroundedDiffusion(backbone, grounder, vocabulary) to save it"
            )
        return self.trained_on

    def to(self, device: torch.device | str) -> GroundedDiffusion:
        """Move both parts to a device."""
        self.backbone.to(device)
        self.grounder.to(device)
        return self

    def __call__(
        self,
        prompt: str | Sequence[str],
        names: Sequence[str] | Sequence[Sequence[str]],
        seed: int = 0,
        negative_prompt: str = "",
    ) -> GroundedImages:
        """Generate images and find the names in them.

        Args:
            prompt: One prompt, or a list that is sampled as one batch.
            names: Names to find, in all images, or one list per prompt. They need not stand in
                the prompt.
            seed: Seed of the first image; the next one has the next seed.
            negative_prompt: What the images are guided away from.

        Raises:
            ValueError: If there is nothing to generate, or a name has no tokens.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        lists = _names_of_each(names, len(prompts))
        requests = [
            Request(i, seed + i, text, _entities(text, wanted), negative_prompt)
            for i, (text, wanted) in enumerate(zip(prompts, lists, strict=True))
        ]
        sample = self.backbone.sample(requests)
        masks = self._masks(sample.features, sample.entities, sample.images)
        return _collect(sample.images, masks, sample.entities, lists, isinstance(prompt, str))

    def ground(
        self,
        images: Image.Image | Sequence[Image.Image],
        names: Sequence[str] | Sequence[Sequence[str]],
        prompt: str = "",
        seed: int = 0,
    ) -> GroundedImages:
        """Find names in photographs: encode, noise to the tapped step, read the features.

        Args:
            images: One picture of the backbone's size, or a list.
            names: As in a call.
            prompt: Description of the pictures; empty for "a photo of a NAME and a NAME ...".
            seed: Seed of the first picture's noise.
        """
        pictures = [images] if isinstance(images, Image.Image) else list(images)
        lists = _names_of_each(names, len(pictures))
        texts = [prompt or "a photo of " + " and ".join(f"a {n}" for n in row) for row in lists]
        requests = [
            Request(i, seed + i, text, _entities(text, wanted))
            for i, (text, wanted) in enumerate(zip(texts, lists, strict=True))
        ]
        if len({picture.size for picture in pictures}) > 1:
            sizes = ", ".join(f"{p.width}x{p.height}" for p in pictures)
            raise ValueError(f"pictures must have the backbone's size, got {sizes}; resize them")
        pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
        pixels = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)
        latents = self.backbone.encode_image(pixels, requests)
        features = self.backbone.features(latents, self.backbone.timesteps, requests)
        entities = self.backbone.entities(requests)
        masks = self._masks(features, entities, pixels)
        return _collect(pixels, masks, entities, lists, isinstance(images, Image.Image))

    @torch.no_grad()
    def _masks(self, features: Features, entities: Entities, images: Tensor) -> Tensor:
        self.grounder.to(entities.text.device)
        check_precision(self.grounder, entities.text)
        logits = self.grounder(features, entities).float()
        if logits.shape[-2:] != (size := images.shape[-2:]):
            logits = interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
        # the grounder's own threshold becomes 0.5
        threshold = torch.tensor(self.grounder.threshold, dtype=torch.float64)
        return (logits - torch.logit(threshold).item()).sigmoid()


def _names_of_each(names: Sequence[str] | Sequence[Sequence[str]], count: int) -> list[list[str]]:
    """Return one list of names per image, each name once.

    Raises:
        ValueError: If there are no images or names, or not one list of names per image.
    """
    if isinstance(names, str):
        raise ValueError(f"names must be a list, got the text {names!r}; write [{names!r}]")
    rows = [names] * count if all(isinstance(n, str) for n in names) else list(names)
    if not count or not any(rows) or len(rows) != count or any(isinstance(r, str) for r in rows):
        raise ValueError(
            f"give at least one prompt and name, and one list of names, or one per prompt; got "
            f"{count} prompts and names = {names}"
        )
    return [list(dict.fromkeys(row)) for row in rows]


def _entities(prompt: str, names: Sequence[str]) -> tuple[Entity, ...]:
    """Find each name in the prompt as whole words; one that is not there has no span."""
    entities = []
    for name in names:
        found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", prompt, flags=re.IGNORECASE)
        entities.append(Entity(0, name, found.span() if found else (-1, -1)))
    return tuple(entities)


def _collect(
    images: Tensor, masks: Tensor, entities: Entities, lists: list[list[str]], single: bool
) -> GroundedImages:
    """Turn masks by position, ``(B, K, H, W)``, into masks by name."""
    names = list(dict.fromkeys(name for row in lists for name in row))
    ids = torch.zeros_like(entities.class_ids)
    by_name = torch.zeros(len(names), *masks[:, 0].shape, device=masks.device)  # (names, B, H, W)
    for i, row in enumerate(lists):
        for k, name in enumerate(row):
            ids[i, k] = names.index(name) + 1
            by_name[names.index(name), i] = masks[i, k]
    labels = to_label_map(masks, ids, entities.valid).cpu().numpy()
    soft = by_name.cpu().numpy()
    if single:
        labels, soft = labels[0], soft[:, 0]
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]
    return GroundedImages(
        images=pictures,
        names=names,
        masks={name: soft[i] >= 0.5 for i, name in enumerate(names)},
        labels=labels,
        probabilities={name: soft[i] for i, name in enumerate(names)},
    )
