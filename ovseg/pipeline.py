"""Prompts and names to images and masks, in one call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ovseg.backbones.base import DiffusionBackbone
from ovseg.grounders.base import Grounder
from ovseg.grounders.folder import load_grounder, read_config
from ovseg.structures import Entities, Entity, Features, Request, to_label_map


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


class GroundedDiffusion:
    """A text-to-image model that says where in its images each name is.

    Args:
        backbone: Makes images and features.
        grounder: Trained on features of that backbone.
    """

    def __init__(self, backbone: DiffusionBackbone, grounder: Grounder) -> None:
        if grounder.feature_spec != backbone.feature_spec:
            raise ValueError(
                f"the grounder needs features {grounder.feature_spec}; the backbone gives "
                f"{backbone.feature_spec}"
            )
        self.backbone, self.grounder = backbone, grounder.eval()

    @classmethod
    def from_pretrained(
        cls, source: str | Path, backbone: DiffusionBackbone | None = None
    ) -> GroundedDiffusion:
        """Load a grounder folder and the backbone that it was trained on.

        Args:
            source: A grounder folder, or "clipart", the embedded world.
            backbone: Use this one instead of building the one that the folder names.

        Raises:
            FileNotFoundError: If there is no grounder in the folder, or no model where it says.
            ValueError: If they do not fit together.
        """
        config = read_config(source)
        if backbone is None:
            backbone = build_backbone(config, source)
        return cls(backbone, load_grounder(source, backbone))

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
        logits = self.grounder(features, entities).float()
        size = tuple(images.shape[-2:])
        if logits.shape[-2:] != size:
            logits = interpolate(logits, size=size, mode="bilinear", align_corners=False)
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
    if not count or not any(rows) or len(rows) != count:
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


def build_backbone(config: dict, source: str | Path) -> DiffusionBackbone:
    """Build the backbone that a grounder folder's configuration names.

    Raises:
        ValueError: If it does not say how, or the class cannot be imported.
    """
    facts = config.get("backbone") or {}
    if "class_path" not in facts or "init_args" not in facts:
        raise ValueError(
            f"the grounder in {source} does not say how to build its backbone; pass backbone=..."
        )
    try:
        kind = resolve_name(facts["class_path"])
    except (ImportError, AttributeError, ValueError):
        raise ValueError(
            f"the backbone {facts['class_path']} of {source} cannot be imported; pass backbone=..."
        ) from None
    return kind(**facts["init_args"])


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
