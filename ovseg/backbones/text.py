"""From words to tokens: where a name stands in a sentence, and what of a sentence is cut."""

from __future__ import annotations

import re
from textwrap import shorten
from typing import NamedTuple

from ovseg.structures import Request

Span = tuple[int, int]
"""Characters ``[start, end)`` of a sentence."""


class Token(NamedTuple):
    """A token of a sentence and the characters ``[start, end)`` that it stands for."""

    id: int
    start: int
    end: int


def tokens_of(tokenizer, text: str) -> list[Token]:
    """Return a sentence's tokens, special ones included (with an empty span), not truncated."""
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(
            text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
        )
        rows = zip(
            encoded["input_ids"],
            encoded["offset_mapping"],
            encoded["special_tokens_mask"],
            strict=True,
        )
        return [Token(i, *((0, 0) if special else span)) for i, span, special in rows]
    return _tokens_by_pieces(tokenizer, text)


def _tokens_by_pieces(tokenizer, text: str) -> list[Token]:
    """Align the pieces of a tokenizer that keeps no offsets, by reading along the text."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    pieces = iter(tokenizer.tokenize(text))
    special = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
    unknown = getattr(tokenizer, "unk_token", None)
    lower, cursor, tokens = text.lower(), 0, []
    for number, is_special in zip(ids, special, strict=True):
        if is_special and number != getattr(tokenizer, "unk_token_id", None):
            tokens.append(Token(number, 0, 0))
            continue
        piece = next(pieces, None)
        if piece is None:  # the closing token, where it doubles as the unknown one
            tokens.append(Token(number, 0, 0))
            continue
        word = letters_of(piece).lower()
        cursor += len(lower[cursor:]) - len(lower[cursor:].lstrip())
        if lower.startswith(word, cursor):
            width = len(word)
        elif piece == unknown:
            width = 1
        else:
            raise ValueError(f"cannot align token {piece!r} with the text {text!r}")
        tokens.append(Token(number, cursor, cursor + width))
        cursor += width
    return tokens


def letters_of(piece: str) -> str:
    """Return a piece without its tokenizer's marks of a word's start and end."""
    return piece.removesuffix("</w>").lstrip("▁Ġ")


def in_sentence(template: str, name: str) -> tuple[str, Span]:
    """Put a name into the sentence of its own, and return where it stands there."""
    start = template.index("{name}")
    return template.replace("{name}", name), (start, start + len(name))


def touching(tokens: list[Token], span: Span) -> list[int]:
    """Return the places of the tokens that stand for characters within ``[start, end)``."""
    start, end = span
    return [i for i, token in enumerate(tokens) if token.start < end and start < token.end]


def positions_of(tokenizer, text: str, span: Span, name: str) -> list[int]:
    """Find the token positions of the characters ``[start, end)`` in an encoded sentence.

    Args:
        tokenizer: A tokenizer of transformers.
        text: The sentence.
        span: Characters of the name.
        name: The name, for messages.

    Raises:
        ValueError: If the span is not in the text, a token of it is unknown to the tokenizer, or
            the sentence is cut before its end.
    """
    start, end = span
    if not 0 <= start < end <= len(text):
        raise ValueError(f"the span {span} of {name!r} is not inside the prompt {text!r}")
    tokens = tokens_of(tokenizer, text)
    found = touching(tokens, span)
    covered = {c for i in found for c in range(tokens[i].start, tokens[i].end)}
    letters = {c for c in range(start, end) if not text[c].isspace()}
    names = ("unk_token_id", "bos_token_id", "eos_token_id")
    unknown = {getattr(tokenizer, n, None) for n in names} - {None}
    if not letters <= covered or any(tokens[i].id in unknown for i in found):
        raise ValueError(
            f"the tokenizer has no tokens for the name {name!r}: give another word for it"
        )
    limit = tokenizer.model_max_length - _closing(tokens)
    if found[-1] >= limit:
        raise ValueError(
            f"the name {_some(name)!r} is cut off: it ends at token {found[-1] + 1} of a prompt of "
            f"at most {limit}; shorten {_some(text)!r}, or leave the name out of it"
        )
    return found


def _some(text: str) -> str:
    """Return a text, of a long one the beginning, for messages."""
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _closing(tokens: list[Token]) -> int:
    """Count the special tokens at the end of a sentence."""
    closing = 0
    while tokens[-1 - closing].start == tokens[-1 - closing].end and closing < len(tokens) - 1:
        closing += 1
    return closing


class Cut(NamedTuple):
    """What becomes of a sentence that is too long.

    Attributes:
        tokens: Its number, special ones included.
        room: How many fit.
        kept: Characters before the first word that is lost, or of which a part is.
    """

    tokens: int
    room: int
    kept: int


def cut_of(tokenizer, text: str, room: int) -> Cut | None:
    """Say where a sentence is cut by an encoder of ``room`` tokens; None if it fits."""
    tokens = tokens_of(tokenizer, text)
    if len(tokens) <= room:
        return None
    first = tokens[room - _closing(tokens)].start
    lost = next((word for word in re.finditer(r"\S+", text) if word.end() > first), None)
    return lost and Cut(len(tokens), room, lost.start())


def refuse_cut(kind: str, text: str, cuts: list[Cut | None]) -> None:
    """Refuse a sentence that every encoder cuts; one that takes all of it is enough.

    Args:
        kind: What the sentence is, for the message.
        text: The sentence.
        cuts: What each encoder makes of it.

    Raises:
        ValueError: Names what even the encoder with the most room would lose.
    """
    if all(cuts):
        cut = max(cuts, key=lambda cut: cut.kept)
        raise ValueError(
            f"the {kind} has {cut.tokens} tokens, {cut.room} fit: the model would not be told "
            f"{shorten(text[cut.kept :], 80, placeholder=' ...')!r}; shorten it"
        )


def check_names(request: Request) -> None:
    """Refuse a request with a name that is empty, or occurs twice.

    Raises:
        ValueError: If there is one.
    """
    names = [entity.name for entity in request.entities]
    if not all(name.strip() for name in names) or len(set(names)) < len(names):
        raise ValueError(f"names must be different and not empty, got {names}")


def check_prompt(request: Request) -> None:
    """Refuse to look for names in an image that is made from an empty prompt.

    Raises:
        ValueError: If the request has names and no prompt; without names it is unconditional.
    """
    if request.entities and not request.prompt.strip():
        names = ", ".join(repr(entity.name) for entity in request.entities)
        raise ValueError(f"the prompt is empty: say in it what is to be drawn, e.g. {names}")


def entity_positions(tokenizer, request: Request) -> list[list[int]]:
    """Return the token positions of each entity in its prompt; empty where it is not in it."""
    return [
        positions_of(tokenizer, request.prompt, e.span, e.name) if e.span[0] >= 0 else []
        for e in request.entities
    ]
