"""The backbone of a grounder folder: built as the folder says, or compared with what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name

from ovseg.backbones.base import DiffusionBackbone
from ovseg.structures import FeatureSpec, TapSpec


def build_backbone(config: dict, source: str | Path, local_files_only: bool) -> DiffusionBackbone:
    """Build the backbone that a grounder names, of the commit that it was trained on.

    Args:
        config: Content of the grounder's ``config.json``.
        source: Where that comes from, for messages.
        local_files_only: Never ask the Hub.

    Raises:
        ValueError: If the config names no backbone that can be built here.
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
    if not (isinstance(kind, type) and issubclass(kind, DiffusionBackbone)):
        raise ValueError(f"{facts['class_path']}, named by {source}, is no DiffusionBackbone")
    own = {"revision": facts.get("revision"), "local_files_only": local_files_only}
    known = {key: value for key, value in own.items() if key in facts["init_args"]}
    try:
        return kind(**{**facts["init_args"], **known})
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"cannot build the {facts['class_path']} of {source}; has its class changed? {error}"
        ) from error


def check_backbone(config: dict, backbone: DiffusionBackbone, folder: Path) -> None:
    """Check that a backbone gives the features that a grounder was trained on.

    Raises:
        ValueError: If not; shows what differs.
    """
    now = {**backbone.describe(), "digest": backbone.digest}
    layers = config.get("attention")  # None if the grounder does not look at it
    same = layers is None or sorted(layers) == sorted(now.get("attention") or ())
    if same and config["backbone_digest"] == backbone.digest:
        return
    before = {**(config.get("backbone") or {}), "digest": config["backbone_digest"]}
    facts = ("model", "revision", "timesteps", "template", "names_in", "guidance_scale")
    facts += ("image_size", "digest") if same else ("image_size", "attention", "digest")
    changes = spec_differences(FeatureSpec(**config["feature_spec"]), backbone.feature_spec) + [
        f"{key} {before[key]} there, {now[key]} here"
        for key in facts
        if key in before and key in now and before[key] != now[key]
    ]
    raise ValueError(
        f"the grounder in {folder} was trained on features of another backbone: "
        f"{'; '.join(changes)}"
    )


def spec_differences(there: FeatureSpec, here: FeatureSpec) -> list[str]:
    """Say in a few short phrases how two specs differ."""
    found = []
    for kind in ("taps", "probes"):
        old, new = getattr(there, kind), getattr(here, kind)
        shared = [
            f"{name} ({key} {before} there, {after} here)"
            for name in old
            if name in new
            for key, before, after in zip(TapSpec._fields, old[name], new[name], strict=True)
            if before != after
        ]
        sides = {
            "only there": [name for name in old if name not in new],
            "only here": [name for name in new if name not in old],
            "differ": shared,
        }
        found += [f"{kind} {how}: {first_of(names)}" for how, names in sides.items() if names]
    for key in ("steps", "branches"):
        before, after = getattr(there, key), getattr(here, key)
        found += [f"{key} {before} there, {after} here"] if before != after else []
    return found


def first_of(items: Sequence[str], mark: str = ", ") -> str:
    """Join the first three of some phrases, and say how many are left out."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return mark.join(items[:3]) + more
