"""The contract of a text-to-image backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ovseg.structures import DiffusionSample, Entities, Features, FeatureSpec, Request


class DiffusionBackbone(nn.Module, ABC):
    """A frozen text-to-image model whose features can be read.

    Construction is cheap: `feature_spec`, `text_width` and `digest` come from configuration files;
    weights are loaded by `load` (called by the first `sample`, `features`, `encode_image` or
    `embed`). Subclasses keep parameters frozen and in eval mode.
    """

    @property
    @abstractmethod
    def feature_spec(self) -> FeatureSpec:
        """Shapes of `features`, known without weights."""

    @property
    @abstractmethod
    def text_width(self) -> int:
        """D, width of the embeddings that `embed` returns."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hex digest of what decides maps and probes: model, revision, taps, tapped steps...

        Branches too, a guidance that the model is told, a size of the images that is not its own;
        not which attention is collected. Grounder folders carry it; those of another backbone are
        refused.
        """

    @property
    def latents_digest(self) -> str:
        """Hex digest of what decides the meaning of latents: the model, however it is read.

        Datasets carry it; latents of another model are refused.
        """
        return self.digest

    @abstractmethod
    def describe(self) -> dict:
        """Return JSON-ready facts for `dataset.json`: model, revision, licence, taps, steps..."""

    def load(self) -> None:  # noqa: B027 - optional: a backbone without weights has nothing to load
        """Load the weights now, if they are not yet."""

    def check_request(self, request: Request) -> None:  # noqa: B027 - optional: others find out
        """Refuse a request that `sample` would refuse, without sampling; the default takes all.

        Raises:
            ValueError: If the prompt is longer than the model can be told, for example.
        """

    @abstractmethod
    def sample(self, requests: Sequence[Request]) -> DiffusionSample:
        """Generate one image per request, each from a generator seeded by its own seed."""

    @abstractmethod
    def features(self, latents: Tensor, timesteps: Tensor, requests: Sequence[Request]) -> Features:
        """Repeat the tapped calls on stored latents ``(B, S, C, h, w)``; ``timesteps (S,)``."""

    @abstractmethod
    def encode_image(self, images: Tensor, requests: Sequence[Request]) -> Tensor:
        """Encode ``(B, 3, H, W)`` uint8 RGB and noise to the tapped steps: ``(B, S, C, h, w)``.

        Noise comes from the requests' seeds; a backbone may invert its sampling instead.
        """

    @abstractmethod
    def embed(self, requests: Sequence[Request]) -> Tensor:
        """Return text embeddings of the entities, ``(B, K, D)``, zeros in padding."""

    def embed_tokens(self, requests: Sequence[Request]) -> Tensor:
        """Return what `embed` is the mean of, token by token: ``(B, K, T, D)``, zeros in padding.

        T is the most tokens of any name; here, 1: a backbone that has no tokens has names alone.
        """
        return self.embed(requests)[:, :, None]

    @property
    @abstractmethod
    def timesteps(self) -> Tensor:
        """``(S,)`` timesteps of the tapped calls."""

    def entities(self, requests: Sequence[Request]) -> Entities:
        """Embed and pad the named things of a batch (K = most entities of any request, >= 1)."""
        text = self.embed(requests)
        ids = torch.zeros(text.shape[:2], dtype=torch.long)
        valid = torch.zeros(text.shape[:2], dtype=torch.bool)
        for row, request in enumerate(requests):
            for column, entity in enumerate(request.entities):
                ids[row, column], valid[row, column] = entity.class_id, True
        return Entities(text, ids.to(text.device), valid.to(text.device))
