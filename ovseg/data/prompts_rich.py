"""Templates in many words: synonyms, adjectives, places and definitions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ovseg.data.prompts import Phrase, TemplatePrompts, put
from ovseg.data.prompts_choice import Classes, by_class, raw_draws, unit
from ovseg.data.prompts_words import article, is_shipped, nameless, names_only, read_words
from ovseg.structures import Entity
from ovseg.vocabulary import Vocabulary, VocabularyClass


class RichPrompts(TemplatePrompts):
    """Prompts such as "a photo of a red automobile and a dog, in a park".

    Which classes stand together is the choice of `TemplatePrompts`; what is drawn here are words.
    An entity's name is the word used, its span that of this word alone. Adjectives, places,
    definitions and synonyms that name another class are left out: it would stand in the picture
    without a mask.

    Args:
        objects: As in `TemplatePrompts`.
        classes: As in `TemplatePrompts`.
        templates: Prompts with the place ``{objects}``, and ``{place}`` where a place is wanted.
        synonyms: Share of the words that are a synonym, where the class has one.
        adjectives: Adjectives, a YAML file with the key `adjectives`, or the name of a shipped one:
            "english", "clipart".
        adjective_share: Share of the words with an adjective.
        places: Places such as "on a street", given as adjectives are.
        definitions: ``{class: text}``, given as adjectives are; a class without one is not defined.
            Of a shipped file those of other classes are left out, otherwise they are refused.
        definition_share: Share of the words with a definition, in parentheses.
        negative_prompt: As in `TemplatePrompts`.
        weights: As in `TemplatePrompts`.
        never_together: As in `TemplatePrompts`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If an argument is not as described.
    """

    known_places = ("{objects}", "{place}")

    def __init__(
        self,
        objects: dict[int, float] | None = None,
        classes: Classes = "seen",
        templates: Sequence[str] = ("a photo of {objects}",),
        synonyms: float = 0.0,
        adjectives: list[str] | str | None = None,
        adjective_share: float = 0.5,
        places: list[str] | str | None = None,
        definitions: dict[str, str] | str | None = None,
        definition_share: float = 0.5,
        negative_prompt: str = "",
        weights: dict[str, float] | str | None = None,
        never_together: list[list[str]] | None = None,
    ) -> None:
        super().__init__(objects, classes, templates, negative_prompt, weights, never_together)
        shares = (synonyms, adjective_share, definition_share)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                "synonyms, adjective_share and definition_share must be shares in [0, 1], got "
                f"{', '.join(map(str, shares))}"
            )
        self.synonyms, self.adjective_share, self.definition_share = shares
        self.adjectives = tuple(read_words("adjectives", adjectives))
        self.places = tuple(read_words("places", places))
        self.definitions: dict[str, str] = read_words("definitions", definitions)
        self._shipped = is_shipped(definitions)
        self._source = definitions if isinstance(definitions, str) else "definitions"
        if any("{place}" in template for template in self.templates) != bool(self.places):
            raise ValueError(
                "places and a template with {place} go together, got "
                f"{len(self.places)} places and {list(self.templates)}"
            )

    def write(
        self, template: str, ids: Sequence[int], vocabulary: Vocabulary, seed: int, index: int
    ) -> tuple[str, tuple[Entity, ...]]:
        """Return the prompt, its words drawn by the seed and the index.

        Raises:
            ValueError: If all adjectives or places name a class, or a definition is of none.
        """
        draws = raw_draws(1 + 5 * len(ids), seed, 20, index)
        if "{place}" in template:
            places = _usable("places", self.places, vocabulary)
            template = template.replace("{place}", _pick(places, draws[0]))
        phrases = [
            self._phrase(vocabulary[class_id], vocabulary, draws[1 + 5 * place :])
            for place, class_id in enumerate(ids)
        ]
        return put(template, phrases)

    def describe(self) -> dict:
        """Return the arguments, with the words that were read."""
        return {
            **super().describe(),
            "synonyms": self.synonyms,
            "adjectives": list(self.adjectives),
            "adjective_share": self.adjective_share,
            "places": list(self.places),
            "definitions": self.definitions,
            "definition_share": self.definition_share,
        }

    def _phrase(self, entry: VocabularyClass, vocabulary: Vocabulary, draws: np.ndarray) -> Phrase:
        """Return a class in words, by the first five draws."""
        name, before, after = entry.name, entry.article, ""
        others = [word for word in entry.synonyms if names_only(word, (entry.id,), vocabulary)]
        if others and unit(draws[0]) < self.synonyms:
            name = _pick(others, draws[1])
            before = article(name)
        if self.adjectives and unit(draws[2]) < self.adjective_share:
            adjective = _pick(_usable("adjectives", self.adjectives, vocabulary), draws[3])
            before = f"{article(adjective)} {adjective}"
        definition = self._definition(entry, vocabulary)
        said = definition and names_only(definition, (entry.id,), vocabulary)
        if said and unit(draws[4]) < self.definition_share:
            after = f" ({definition})"
        return Phrase(entry.id, f"{before} ", name, after)

    def _definition(self, entry: VocabularyClass, vocabulary: Vocabulary) -> str:
        """Return the definition of a class, "" if it has none."""
        if self._shipped:
            return self.definitions.get(entry.name, self.definitions.get(entry.key, ""))
        return by_class(self.definitions, vocabulary, self._source).get(entry.id, "")


def _usable(key: str, words: tuple[str, ...], vocabulary: Vocabulary) -> tuple[str, ...]:
    usable = nameless(words, vocabulary)
    if not usable:
        raise ValueError(f"all {key} name a class of {vocabulary.name!r}: {', '.join(words)}")
    return usable


def _pick(words: Sequence[str], draw: np.uint64) -> str:
    return words[int(draw % np.uint64(len(words)))]
