"""The text encoders of a pipeline: what a denoiser is told of prompts and names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ovseg.backbones.files import PipelineFiles
from ovseg.backbones.text import (
    Span,
    cut_of,
    entity_positions,
    in_sentence,
    positions_of,
    refuse_cut,
)
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
    """Tokenizers of a pipeline and, once they are loaded, its encoders.

    Args:
        files: The pipeline's files.

    Raises:
        ValueError: If the pipeline lacks an encoder.
    """

    PARTS: tuple[str, ...]
    """Encoders in the pipeline's folders."""

    OPTIONAL: tuple[str, ...] = ()
    """Those of them that a pipeline may lack."""

    NAMES_BY = "text_encoder"
    """The encoder by whose tokens names are found, and whose states embed them."""

    def __init__(self, files: PipelineFiles) -> None:
        super().__init__()
        self.files = files
        parts = [part for part in self.PARTS if files.has(part)]
        if lacking := [p for p in self.PARTS if p not in (*parts, *self.OPTIONAL)]:
            raise ValueError(
                f"the model {files.model!r} has no {' and no '.join(lacking)}, without which "
                "prompts cannot be read"
            )
        self.tokenizers = {p: files.load(p.replace("text_encoder", "tokenizer")) for p in parts}
        self.encoders = nn.ModuleDict()

    def load(self, dtype: torch.dtype) -> None:
        """Load the encoders' weights."""
        self.encoders.update({part: self.files.load(part, dtype) for part in self.tokenizers})
        self.requires_grad_(False).eval()

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode sentences, padded to the full length."""

    def names(self, texts: Sequence[str]) -> Tensor:
        """Return the states ``(B, T, D)`` that names are embedded by; here, all of them."""
        return self.encode(texts).states

    def pooled(self, texts: Sequence[str]) -> Tensor:
        """Return what all CLIP encoders say of whole sentences, side by side: ``(B, P)``.

        That is the state at the sentence's end, projected where the model's encoder projects it.
        """
        outputs = [self.run(part, texts) for part in self.files.clip_encoders]
        return torch.cat([_pooled(output) for output in outputs], dim=1)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer by which names are found."""
        return self.tokenizers[self.NAMES_BY]

    def judges(self, names_in: str) -> list[Any]:
        """Return the tokenizers that must know a name, by how names are embedded."""
        if names_in == "pooled":
            return [self.tokenizers[part] for part in self.files.clip_encoders]
        return [self.tokenizer]

    def without_text(self, texts: Sequence[str]) -> Encoded:
        """Encode what the unconditional branch is told."""
        return self.encode(texts)

    def positions(self, request: Request) -> list[list[int]]:
        """Return the token positions of each entity in its prompt; empty where it is not in it."""
        return entity_positions(self.tokenizer, request)

    def room(self, part: str) -> int:
        """Return how many tokens one encoder is given; here, its tokenizer's own number."""
        return self.tokenizers[part].model_max_length

    def check(self, request: Request) -> None:
        """Refuse a request whose prompt, or negative prompt, is cut.

        Of SD3 and FLUX, CLIP may be told the beginning alone, as long as T5 is told the rest.

        Raises:
            ValueError: If every encoder would cut it.
        """
        texts = {"prompt": request.prompt, "negative prompt": request.negative_prompt}
        for kind, text in texts.items():
            cuts = [cut_of(t, text, self.room(part)) for part, t in self.tokenizers.items()]
            refuse_cut(kind, text, cuts)

    def run(self, part: str, texts: Sequence[str], **options: Any):
        """Call one encoder on sentences padded or cut to its length."""
        tokenizer, encoder = self.tokenizers[part], self.encoders[part]
        encoded = tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.room(part),
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
        return states, [_pooled(output) for output in outputs]


def _pooled(output: Any) -> Tensor:
    """Return the one vector per sentence, ``(B, P)``, of a CLIP encoder's output."""
    return output.get("text_embeds", output.get("pooler_output"))


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
        if self.files.index.get("force_zeros_for_empty_prompt", True):
            empty = torch.tensor([not text for text in texts], device=states.device)
            states, pooled = states.clone(), pooled.clone()
            states[empty], pooled[empty] = 0, 0
        return Encoded(states, pooled)


class SD3Text(TextEncoders):
    """Two CLIP encoders and T5, one behind the other: SD3 (Esser et al., arXiv 2403.03206).

    T5 may be missing; its place is taken by zeros. Names are embedded by the CLIP encoders.
    """

    PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3")
    OPTIONAL = ("text_encoder_3",)
    LENGTH = 256

    def __init__(self, files: PipelineFiles) -> None:
        super().__init__(files)
        self.width = files.config("transformer/config.json")["joint_attention_dim"]

    def encode(self, texts: Sequence[str]) -> Encoded:
        clip, pooled = self.clip_pair(texts)
        if "text_encoder_3" in self.encoders:
            more = self.run("text_encoder_3", texts)[0]
        else:
            more = clip.new_zeros(len(texts), self.LENGTH, self.width)
        clip = pad(clip, (0, more.shape[2] - clip.shape[2]))
        return Encoded(torch.cat([clip, more], dim=1), torch.cat(pooled, dim=1))

    def room(self, part: str) -> int:
        return self.LENGTH if part == "text_encoder_3" else super().room(part)

    def names(self, texts: Sequence[str]) -> Tensor:
        return self.clip_pair(texts)[0]


class FluxText(TextEncoders):
    """T5's states and CLIP's pooled embedding: FLUX. Names are embedded by T5.

    T5 is given 512 tokens; of a model that is not told its guidance (FLUX.1 schnell), 256.
    """

    PARTS = ("text_encoder", "text_encoder_2")
    NAMES_BY = "text_encoder_2"

    def __init__(self, files: PipelineFiles) -> None:
        super().__init__(files)
        most = 512 if files.config("transformer/config.json").get("guidance_embeds") else 256
        self.tokenizer.model_max_length = min(most, self.tokenizer.model_max_length)

    def encode(self, texts: Sequence[str]) -> Encoded:
        return Encoded(self.names(texts), self.pooled(texts))

    def names(self, texts: Sequence[str]) -> Tensor:
        return self.run("text_encoder_2", texts)[0]


class NameEmbeddings:
    """Embeddings of names, one for each token of a name; each kept once it was made.

    Args:
        template: Sentence in which a name is embedded.
        names_in: "sentence"; "prompt": in the image's prompt if it stands there; or "pooled".
    """

    def __init__(self, template: str, names_in: str) -> None:
        self.template, self.names_in = template, names_in
        self._known: dict[str, Tensor] = {}

    def of(self, text: TextEncoders, request: Request) -> list[Tensor]:
        """Return ``(T, D)`` float32 of each entity, T the number of its tokens; pooled, 1.

        Raises:
            ValueError: See `ovseg.backbones.text.positions_of`.
        """
        inside = self._in_prompt(text, request) if self.names_in == "prompt" else {}
        return [
            inside[k] if k in inside else self._alone(text, entity.name)
            for k, entity in enumerate(request.entities)
        ]

    def _alone(self, text: TextEncoders, name: str) -> Tensor:
        """Embed a name in a sentence of its own.

        By the states of its tokens, whose mean Li et al. take (arXiv 2301.05221, section 3.2), or
        by the pooled embedding of that sentence. One sentence per call, so that the result depends
        on nothing else.
        """
        if name not in self._known:
            embed = self._pooled if self.names_in == "pooled" else self._states
            self._known[name] = embed(text, name, *in_sentence(self.template, name))
        return self._known[name]

    def _states(self, text: TextEncoders, name: str, sentence: str, span: Span) -> Tensor:
        places = positions_of(text.tokenizer, sentence, span, name)
        return text.names([sentence])[0, places].float()

    def _pooled(self, text: TextEncoders, name: str, sentence: str, span: Span) -> Tensor:
        for tokenizer in text.judges("pooled"):
            positions_of(tokenizer, sentence, span, name)
        return text.pooled([sentence]).float()

    def _in_prompt(self, text: TextEncoders, request: Request) -> dict[int, Tensor]:
        """Embed the names that stand in the prompt there."""
        places = text.positions(request)
        if not any(places):
            return {}
        states = text.names([request.prompt])[0].float()
        return {k: states[found] for k, found in enumerate(places) if found}
