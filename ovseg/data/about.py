"""What `dataset.json` says, as lines to read."""

from __future__ import annotations

from collections.abc import Mapping

COSTS = ("scheduler", "steps", "guidance_scale", "dtype", "image_size")
"""Of a backbone, what decides how its images look and what they cost."""


def about(facts: Mapping, keys: Mapping[int, str], shards: tuple[int, int]) -> dict[str, str]:
    """Return ``{what: value}`` of a dataset, in the order to read; what is unknown is left out.

    Args:
        facts: `dataset.json`, of any format; or of one that is not complete what is known.
        keys: Keys of the classes by id, as far as they are known.
        shards: How many are finished, and how many the dataset takes.
    """
    backbone, annotator, words = facts["backbone"] or {}, facts["annotator"], facts["vocabulary"]
    environment, done = facts.get("environment", {}), "complete"
    if shards[0] < shards[1]:
        done = f"not complete: {shards[0]} of {shards[1]} shards"
    lines = {
        "state": done,
        "model": _joined(backbone.get("model"), ("revision", backbone.get("revision"))),
        "licence": backbone.get("licence"),
        "sampled with": _joined(*((name, backbone.get(name)) for name in COSTS)),
        "annotator": _joined(
            annotator.get("source"),
            ("split", annotator.get("split")),
            ("threshold", annotator.get("threshold")),
        ),
        "masks seen of": _names(annotator.get("trained_on"), keys),
        "classes asked for": _names(facts.get("requested_classes"), keys),
        "vocabulary": _joined(
            words.get("name"),
            ("split", words.get("split")),
            ("classes", words.get("num_classes", 1) - 1),
        ),
        "prompts": _settings(facts.get("prompts")),
        "filter": _settings(facts.get("filter")),
        "stream": _joined(*((n, facts.get(n)) for n in ("size", "seed", "quota", "limit"))),
        "label maps": _joined(*((n, facts.get(n)) for n in ("threshold", "band"))),
        "digests": _joined(
            ("configuration", facts.get("config_digest")),
            ("vocabulary", words.get("digest")),
            ("latents", facts.get("latents_digest")),
            ("annotator", annotator.get("digest")),
        ),
        "made on": _joined(
            *((n, environment.get(n)) for n in ("device", "threads")),
            *environment.get("versions", {}).items(),
        ),
        "format": str(facts["format"]),
    }
    return {what: line for what, line in lines.items() if line}


def _joined(*parts: str | None | tuple[str, object]) -> str:
    """Return values and pairs of name and value on a line; None is left out."""
    pairs = [("", part) if part is None or isinstance(part, str) else part for part in parts]
    shown = [(name, _text(value)) for name, value in pairs if value is not None]
    return ", ".join(f"{name.replace('_', ' ')} {text}".strip() for name, text in shown)


def _text(value: object) -> str:
    """Return JSON-ready data in words: ``{"a": 1}`` as "a: 1", ``["b", "c"]`` as "b; c"."""
    if isinstance(value, Mapping):
        value = [f"{name}: {_text(inner)}" for name, inner in value.items()]
    return "; ".join(map(_text, value)) if isinstance(value, list) else str(value)


def _names(class_ids: list[int] | None, keys: Mapping[int, str]) -> str | None:
    if class_ids is None:
        return None
    return ", ".join(keys.get(class_id, f"class {class_id}") for class_id in class_ids) or "none"


def _settings(facts: Mapping | None) -> str | None:
    """Return class and arguments, those that are unset left out."""
    if facts is None:
        return None
    given = [(n, v) for n, v in facts.items() if n != "class_path" and v not in (None, False, "")]
    return _joined(facts.get("class_path"), *given)
