"""The grounder folder: a trained grounder as the other stages load it.

``config.json`` says what it is (class_path, init_args, feature spec, text width, threshold) and
where it comes from (backbone and its digest, vocabulary, split, seen classes);
``model.safetensors`` holds its weights. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import ovseg
from ovseg.backbones.base import DiffusionBackbone
from ovseg.embedded import locate
from ovseg.grounders.base import Grounder
from ovseg.structures import FeatureSpec
from ovseg.vocabulary import Vocabulary

CONFIG, WEIGHTS = "config.json", "model.safetensors"

_NEEDED = {"class_path", "init_args", "feature_spec", "text_width", "threshold", "backbone_digest"}


def save_grounder(
    grounder: Grounder, folder: str | Path, backbone: DiffusionBackbone, vocabulary: Vocabulary
) -> None:
    """Write a grounder folder, as a whole or not at all.

    Args:
        grounder: The trained grounder.
        folder: Where to; an older grounder there is replaced.
        backbone: Whose features it was trained on.
        vocabulary: Classes and split that it was trained with.

    Raises:
        ValueError: If the folder holds something else, or the grounder's arguments are not JSON.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or _is_foreign(folder)):
        raise ValueError(f"{folder} exists and holds no grounder; give another output folder")
    config = _config(grounder, backbone, vocabulary)
    try:
        text = json.dumps(config, indent=2)
    except TypeError as error:
        raise ValueError(
            f"the arguments of {config['class_path']} and the facts of its backbone must be JSON "
            f"values to be saved: {error}"
        ) from None
    partial = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    older = partial.with_suffix(".old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        (partial / CONFIG).write_text(text + "\n", encoding="utf-8")
        state = {name: tensor.contiguous() for name, tensor in grounder.state_dict().items()}
        save_file(state, partial / WEIGHTS)
        if folder.exists():
            os.replace(folder, older)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)


def _is_foreign(folder: Path) -> bool:
    return any(folder.iterdir()) and not (folder / CONFIG).is_file()


def _config(grounder: Grounder, backbone: DiffusionBackbone, vocabulary: Vocabulary) -> dict:
    return {
        "class_path": f"{type(grounder).__module__}.{type(grounder).__qualname__}",
        "init_args": grounder.init_args,
        "feature_spec": grounder.feature_spec.to_dict(),
        "text_width": grounder.text_width,
        "threshold": float(grounder.threshold),
        "backbone": backbone.describe(),
        "backbone_digest": backbone.digest,
        "vocabulary": {
            "name": vocabulary.name,
            "digest": vocabulary.digest,
            "split": vocabulary.split,
            "seen": [vocabulary[i].name for i in vocabulary.seen],
        },
        "ovseg": ovseg.__version__,
    }


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read and check a grounder folder's ``config.json``.

    Raises:
        FileNotFoundError: If there is no grounder in the folder.
        ValueError: If the file is not one of ours.
    """
    path = locate(folder, "grounder") / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"no grounder in {path.parent}: it has no {CONFIG}; `fit` writes one to "
            "model.init_args.output"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    missing = _NEEDED - set(config if isinstance(config, dict) else ())
    if missing:
        raise ValueError(f"{path} is no grounder's: it lacks {', '.join(sorted(missing))}")
    return config


def folder_digest(folder: str | Path) -> str:
    """Hex digest of a grounder: its class, arguments, threshold and weights."""
    config = read_config(folder)
    facts = {key: config[key] for key in sorted(_NEEDED)}
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    total.update((locate(folder, "grounder") / WEIGHTS).read_bytes())
    return total.hexdigest()[:16]


def load_grounder(folder: str | Path, backbone: DiffusionBackbone | None = None) -> Grounder:
    """Load a grounder on CPU, in eval mode.

    Args:
        folder: A grounder folder, or "clipart", the embedded one.
        backbone: Whose features it will be given; None leaves that unchecked.

    Raises:
        FileNotFoundError: If there is no grounder in the folder.
        ValueError: If class, weights or backbone do not fit; shows the difference.
    """
    config, folder = read_config(folder), locate(folder, "grounder")
    if backbone is not None:
        check_backbone(config, backbone, folder)
    grounder = _build(config, folder)
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {folder / WEIGHTS}: {error}") from None
    own = grounder.state_dict()
    differing = [
        f"{name} is {_shape(own.get(name))} in {config['class_path']}, {_shape(state.get(name))} "
        "in the file"
        for name in {**own, **state}
        if _shape(own.get(name)) != _shape(state.get(name))
    ]
    if differing:
        raise ValueError(
            f"the weights in {folder} belong to another architecture than its {CONFIG} says: "
            f"{'; '.join(differing[:3])}{' ...' if len(differing) > 3 else ''}"
        )
    grounder.load_state_dict(state)
    grounder.threshold = float(config["threshold"])
    return grounder.eval()


def _shape(tensor) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))


def _build(config: dict, folder: Path) -> Grounder:
    try:
        kind = resolve_name(config["class_path"])
    except (ImportError, AttributeError, ValueError):
        raise ValueError(
            f"the grounder in {folder} is a {config['class_path']}, which cannot be imported; "
            "install its package, or start where it can be found"
        ) from None
    if not (isinstance(kind, type) and issubclass(kind, Grounder)):
        raise ValueError(f"{config['class_path']}, named by {folder / CONFIG}, is no Grounder")
    try:
        spec = FeatureSpec(**config["feature_spec"])
        return kind(spec, config["text_width"], **config["init_args"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"cannot build the {config['class_path']} of {folder}; has its class changed? {error}"
        ) from error


def check_backbone(config: dict, backbone: DiffusionBackbone, folder: Path) -> None:
    """Check that a backbone gives the features that a grounder was trained on.

    Raises:
        ValueError: If not; shows what differs.
    """
    if config["backbone_digest"] == backbone.digest:
        return
    before, now = config.get("backbone") or {}, backbone.describe()
    before = {**before, "feature_spec": config["feature_spec"], "digest": config["backbone_digest"]}
    now = {**now, "feature_spec": backbone.feature_spec.to_dict(), "digest": backbone.digest}
    facts = ("model", "revision", "taps", "timesteps", "both_branches", "feature_spec", "digest")
    changes = [
        f"{key} {before[key]} there, {now[key]} here"
        for key in facts
        if key in before and key in now and before[key] != now[key]
    ]
    raise ValueError(
        f"the grounder in {folder} was trained on features of another backbone: "
        f"{'; '.join(changes)}"
    )
