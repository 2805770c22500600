"""From words to tokens: where a name stands in a sentence, found by characters."""

from __future__ import annotations

from typing import NamedTuple

from ovseg.structures import Request


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
        word = piece.removesuffix("</w>").lstrip("▁Ġ").lower()
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


def positions_of(tokenizer, text: str, span: tuple[int, int], name: str) -> list[int]:
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
    found = [i for i, token in enumerate(tokens) if token.start < end and start < token.end]
    covered = {c for i in found for c in range(tokens[i].start, tokens[i].end)}
    letters = {c for c in range(start, end) if not text[c].isspace()}
    names = ("unk_token_id", "bos_token_id", "eos_token_id")
    unknown = {getattr(tokenizer, n, None) for n in names} - {None}
    if not letters <= covered or any(tokens[i].id in unknown for i in found):
        raise ValueError(
            f"the tokenizer has no tokens for the name {name!r}: give another word for it"
        )
    closing = 0
    while tokens[-1 - closing].start == tokens[-1 - closing].end and closing < len(tokens) - 1:
        closing += 1
    limit = tokenizer.model_max_length - closing
    if found[-1] >= limit:
        raise ValueError(
            f"the name {name!r} is cut off: it ends at token {found[-1] + 1} of a prompt of at "
            f"most {limit}; shorten {text!r}"
        )
    return found


def entity_positions(tokenizer, request: Request) -> list[list[int]]:
    """Return the token positions of each entity in its prompt; empty where it is not in it."""
    return [
        positions_of(tokenizer, request.prompt, e.span, e.name) if e.span[0] >= 0 else []
        for e in request.entities
    ]
