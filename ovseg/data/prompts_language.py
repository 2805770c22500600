"""Prompts that a language model writes, as long as it says what was drawn."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from ovseg.checkpoint import Checkpoint
from ovseg.data.prompts import TemplatePrompts, check_places, fill
from ovseg.data.prompts_choice import Classes, raw_draws
from ovseg.data.prompts_words import composed, first_names
from ovseg.structures import Entity
from ovseg.vocabulary import Vocabulary

INSTRUCTION = (
    "Write a caption, one short sentence, of a photo that shows {objects}. Use these words."
)


class LanguagePrompts(TemplatePrompts):
    """Captions that a causal language model of transformers writes around the drawn classes.

    Which classes stand together is the choice of `TemplatePrompts`. A caption is taken if the names
    that are found in it (see `CaptionPrompts`) are those of just these classes; another class would
    stand in the picture without a mask. After some tries the template is taken.

    The model runs on the CPU with one thread, in the processes of `data.num_workers`, and samples
    with a seed of its own for each try: a request depends on seed and index alone.

    Args:
        model: A folder, or a Hub id, of a model with its tokenizer; safetensors alone. If the
            tokenizer has a chat template, the instruction is a user's message.
        objects: As in `TemplatePrompts`.
        classes: As in `TemplatePrompts`.
        templates: As in `TemplatePrompts`, for where the model fails.
        instruction: What the model is asked, with the place ``{objects}``.
        tries: Captions that it may write for a prompt.
        max_words: Most words of a caption; see `CaptionPrompts`.
        max_new_tokens: Most tokens that it may write.
        temperature: Of the sampling, > 0.
        revision: Commit, branch or tag on the Hub.
        local_files_only: Never ask the Hub; use what has been downloaded before.
        negative_prompt: As in `TemplatePrompts`.
        weights: As in `TemplatePrompts`.
        never_together: As in `TemplatePrompts`.

    Raises:
        FileNotFoundError: If there is no model.
        ValueError: If an argument is not as described, or the model cannot be loaded.
    """

    costly = True

    def __init__(
        self,
        model: str,
        objects: dict[int, float] | None = None,
        classes: Classes = "seen",
        templates: Sequence[str] = ("a photo of {objects}",),
        instruction: str = INSTRUCTION,
        tries: int = 3,
        max_words: int = 40,
        max_new_tokens: int = 60,
        temperature: float = 1.0,
        revision: str | None = None,
        local_files_only: bool = False,
        negative_prompt: str = "",
        weights: dict[str, float] | str | None = None,
        never_together: list[list[str]] | None = None,
    ) -> None:
        super().__init__(objects, classes, templates, negative_prompt, weights, never_together)
        if instruction.count("{objects}") != 1:
            raise ValueError(f"the instruction needs {{objects}} once, got {instruction!r}")
        check_places("the instruction", [instruction], self.known_places)
        if min(tries, max_words, max_new_tokens) < 1 or not temperature > 0:
            raise ValueError(
                "tries, max_words and max_new_tokens must be >= 1 and temperature > 0, got "
                f"{tries}, {max_words}, {max_new_tokens} and {temperature}"
            )
        self.checkpoint = Checkpoint(model, revision, local_files_only)
        self.instruction, self.tries, self.max_words = instruction, tries, max_words
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self._made: Counter[str] = Counter()

    def write(
        self, template: str, ids: Sequence[int], vocabulary: Vocabulary, seed: int, index: int
    ) -> tuple[str, tuple[Entity, ...]]:
        """Return the model's first caption with these classes and no other, or the template's."""
        asked, _ = fill(self.instruction, ids, vocabulary)
        for draw in raw_draws(self.tries, seed, 40, index):
            text = caption_in(self.answer(asked, int(draw >> 1)))
            entities = first_names(text, vocabulary)
            if entities.keys() == set(ids) and len(text.split()) <= self.max_words:
                self._made["written by the model"] += 1
                return text, tuple(entities.values())
        if not self._made["by the template"]:
            warnings.warn(
                f"{self.checkpoint.source} wrote no caption in {self.tries} tries that names just "
                f"what is asked, as in {asked!r}: such prompts are the template's; `ovseg prompts` "
                "counts them",
                stacklevel=2,
            )
        self._made["by the template"] += 1
        return fill(template, ids, vocabulary)

    @torch.no_grad()
    def answer(self, text: str, seed: int) -> str:
        """Return what the model says to a text, sampled with a seed in [0, 2**63)."""
        model, tokenizer = self._loaded
        plain = not tokenizer.chat_template
        if plain:
            text = f"{text}\nCaption:"
        else:
            message = {"role": "user", "content": text}
            text = tokenizer.apply_chat_template(
                [message], tokenize=False, add_generation_prompt=True
            )
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=plain)
        inputs = {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs}
        end = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        with _one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokens = model.generate(
                **inputs,
                do_sample=True,
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                pad_token_id=end,
            )
        return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def counts(self) -> dict[str, int]:
        """Return how many of the requests made so far the model wrote, and how many it did not."""
        return dict(self._made)

    def describe(self) -> dict:
        """Return the arguments, and which model it is."""
        return {
            **super().describe(),
            "model": self.checkpoint.describe(),
            "instruction": self.instruction,
            "tries": self.tries,
            "max_words": self.max_words,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
        }

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Return model and tokenizer, loaded when the first prompt is asked for."""
        from transformers import AutoModelForCausalLM

        tokenizer = self.checkpoint.tokenizer()
        return self.checkpoint.model(AutoModelForCausalLM), tokenizer


def caption_in(answer: str) -> str:
    """Return the first line of an answer that holds a letter, without quotation marks around it."""
    lines = (" ".join(composed(line).split()) for line in answer.splitlines())
    line = next((line for line in lines if any(map(str.isalpha, line))), "")
    return line.strip("\"'“”‘’«» ")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread for a while: another number changes the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
