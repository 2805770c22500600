"""The text encoders of a pipeline: what a denoiser is told of prompts and names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ovseg.backbones.files import PipelineFiles
from ovseg.backbones.text import entity_positions, positions_of
from ovseg.structures import Request


class Encoded(NamedTuple):
    """Encoded sentences.

    Attributes:
        states: ``(B, T, D)``, one vector per token.
        pooled: ``(B, P)``, one vector per sentence, or None if the model takes none.
    """

    states: Tensor
    pooled: Tensor | None = None

    def then(self, more: Encoded) -> Encoded:
        """Return these sentences with more behind them."""
        pooled = None if more.pooled is None else torch.cat([self.pooled, more.pooled])
        return Encoded(torch.cat([self.states, more.states]), pooled)


class TextEncoders(nn.Module, ABC):
    """Tokenizers and encoders of a pipeline.

    Args:
        files: The pipeline's files.
        dtype: Of the weights.
    """

    PARTS: tuple[str, ...]
    """Encoders in the pipeline's folders; those that it lacks are left out."""

    NAMES_BY = "text_encoder"
    """The encoder by whose tokens names are found, and whose states embed them."""

    def __init__(self, files: PipelineFiles, dtype: torch.dtype) -> None:
        super().__init__()
        self.index = files.index
        parts = [part for part in self.PARTS if files.has(part)]
        self.tokenizers = {p: files.load(p.replace("text_encoder", "tokenizer")) for p in parts}
        self.encoders = nn.ModuleDict({part: files.load(part, dtype) for part in parts})
        self.requires_grad_(False).eval()

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode sentences, padded to the full length."""

    def names(self, texts: Sequence[str]) -> Tensor:
        """Return the states ``(B, T, D)`` that names are embedded by; here, all of them."""
        return self.encode(texts).states

    @property
    def tokenizer(self) -> Any:
        """The tokenizer by which names are found."""
        return self.tokenizers[self.NAMES_BY]

    def without_text(self, texts: Sequence[str]) -> Encoded:
        """Encode what the unconditional branch is told."""
        return self.encode(texts)

    def positions(self, request: Request) -> list[list[int]]:
        """Return the token positions of each entity in its prompt; empty where it is not in it."""
        return entity_positions(self.tokenizer, request)

    def run(self, part: str, texts: Sequence[str], length: int | None = None, **options: Any):
        """Call one encoder on sentences padded or cut to a length (its tokenizer's own)."""
        tokenizer, encoder = self.tokenizers[part], self.encoders[part]
        encoded = tokenizer(
            list(texts),
            padding="max_length",
            max_length=length or tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = None
        if getattr(encoder.config, "use_attention_mask", False):
            mask = encoded.attention_mask.to(encoder.device)
        return encoder(encoded.input_ids.to(encoder.device), attention_mask=mask, **options)

    def clip_pair(self, texts: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        """Return the last states but one of two CLIP encoders side by side, and both pooled."""
        parts = ("text_encoder", "text_encoder_2")
        outputs = [self.run(part, texts, output_hidden_states=True) for part in parts]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=2)
        return states, [output[0] for output in outputs]


class ClipText(TextEncoders):
    """One CLIP encoder's last states: Stable Diffusion 1 and 2."""

    PARTS = ("text_encoder",)

    def encode(self, texts: Sequence[str]) -> Encoded:
        return Encoded(self.run("text_encoder", texts)[0])


class SDXLText(TextEncoders):
    """Two CLIP encoders: SDXL (Podell et al., arXiv 2307.01952)."""

    PARTS = ("text_encoder", "text_encoder_2")

    def encode(self, texts: Sequence[str]) -> Encoded:
        states, pooled = self.clip_pair(texts)
        return Encoded(states, pooled[1])

    def without_text(self, texts: Sequence[str]) -> Encoded:
        states, pooled = self.encode(texts)
        if self.index.get("force_zeros_for_empty_prompt"):
            empty = torch.tensor([not text for text in texts], device=states.device)
            states, pooled = states.clone(), pooled.clone()
            states[empty], pooled[empty] = 0, 0
        return Encoded(states, pooled)


class SD3Text(TextEncoders):
    """Two CLIP encoders and T5, one behind the other: SD3 (Esser et al., arXiv 2403.03206).

    T5 may be missing; its place is taken by zeros. Names are embedded by the CLIP encoders.
    """

    PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3")
    LENGTH = 256

    def __init__(self, files: PipelineFiles, dtype: torch.dtype) -> None:
        super().__init__(files, dtype)
        self.width = files.config("transformer/config.json")["joint_attention_dim"]

    def encode(self, texts: Sequence[str]) -> Encoded:
        clip, pooled = self.clip_pair(texts)
        if "text_encoder_3" in self.encoders:
            more = self.run("text_encoder_3", texts, self.LENGTH)[0]
        else:
            more = clip.new_zeros(len(texts), self.LENGTH, self.width)
        clip = pad(clip, (0, more.shape[2] - clip.shape[2]))
        return Encoded(torch.cat([clip, more], dim=1), torch.cat(pooled, dim=1))

    def names(self, texts: Sequence[str]) -> Tensor:
        return self.clip_pair(texts)[0]


class FluxText(TextEncoders):
    """T5's states and CLIP's pooled embedding: FLUX. Names are embedded by T5."""

    PARTS = ("text_encoder", "text_encoder_2")
    NAMES_BY = "text_encoder_2"
    LENGTH = 512

    def encode(self, texts: Sequence[str]) -> Encoded:
        return Encoded(self.names(texts), self.run("text_encoder", texts).pooler_output)

    def names(self, texts: Sequence[str]) -> Tensor:
        length = min(self.LENGTH, self.tokenizer.model_max_length)
        return self.run("text_encoder_2", texts, length)[0]


class NameEmbeddings:
    """Embeddings of names, each kept once it was made.

    Args:
        template: Sentence in which a name is embedded.
        names_in: "sentence", or "prompt": in the image's prompt if it stands there.
    """

    def __init__(self, template: str, names_in: str) -> None:
        self.template, self.names_in = template, names_in
        self._known: dict[str, Tensor] = {}

    def of(self, text: TextEncoders, request: Request) -> list[Tensor]:
        """Return ``(D,)`` float32 of each entity.

        Raises:
            ValueError: See `ovseg.backbones.text.positions_of`.
        """
        inside = self._in_prompt(text, request) if self.names_in == "prompt" else {}
        return [
            inside[k] if k in inside else self._alone(text, entity.name)
            for k, entity in enumerate(request.entities)
        ]

    def _alone(self, text: TextEncoders, name: str) -> Tensor:
        """Embed a name as Li et al. do (arXiv 2301.05221, section 3.2).

        It stands in a sentence of its own; its embedding is the mean of the states over its tokens
        alone. One sentence per call, so that the result depends on nothing else.
        """
        if name not in self._known:
            start = self.template.index("{name}")
            sentence = self.template.replace("{name}", name)
            places = positions_of(text.tokenizer, sentence, (start, start + len(name)), name)
            self._known[name] = text.names([sentence])[0, places].float().mean(dim=0)
        return self._known[name]

    def _in_prompt(self, text: TextEncoders, request: Request) -> dict[int, Tensor]:
        """Embed the names that stand in the prompt there, by the mean over each one's tokens."""
        places = text.positions(request)
        if not any(places):
            return {}
        states = text.names([request.prompt])[0].float()
        return {k: states[found].mean(dim=0) for k, found in enumerate(places) if found}
