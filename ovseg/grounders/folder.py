"""The grounder folder: a trained grounder as the other stages load it, here or from the Hub.

``config.json`` says what it is (class_path, init_args, feature spec, text width, threshold) and
where it comes from (backbone and its digest, vocabulary, split, seen and unseen classes);
``model.safetensors`` holds its weights, ``README.md`` is its model card and ``results.json``, if it
is there, what `ovseg test` measured. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

import ovseg
from ovseg.backbones.base import DiffusionBackbone
from ovseg.embedded import locate
from ovseg.grounders.base import Grounder
from ovseg.grounders.card import make_card
from ovseg.grounders.partner import check_backbone, first_of
from ovseg.hub import hub_folder, is_hub_id
from ovseg.kept import (
    CARD,
    CONFIG,
    NEEDED,
    RESULTS,
    WEIGHTS,
    check_config,
    check_replaceable,
    class_of,
    replacing,
)
from ovseg.pretrained import read_json
from ovseg.structures import FeatureSpec
from ovseg.vocabulary import EVERY, Vocabulary


def save_grounder(
    grounder: Grounder,
    folder: str | Path,
    backbone: DiffusionBackbone,
    vocabulary: Vocabulary,
    taught: Collection[int] = (),
    practices: Collection[str] = (),
) -> None:
    """Write the folder of a grounder that was not measured yet, as a whole or not at all.

    Args:
        grounder: The trained grounder.
        folder: Where to; an older grounder there is replaced.
        backbone: Whose features it was trained on.
        vocabulary: Classes and split that it was trained with.
        taught, practices: See `split_facts`.

    Raises:
        ValueError: If the folder holds something else, or the grounder's arguments are not JSON.
    """
    write_folder(folder, grounder, backbone, split_facts(vocabulary, taught, practices))


def write_folder(
    folder: str | Path,
    grounder: Grounder,
    backbone: DiffusionBackbone,
    trained_on: dict,
    results: dict[str, dict] | None = None,
) -> None:
    """Write a grounder folder with its model card, as a whole or not at all.

    Args:
        folder: Where to; an older grounder there is replaced.
        grounder: The trained grounder.
        backbone: Whose features it was trained on.
        trained_on: `split_facts` of the vocabulary that it was trained with.
        results: What `read_results` returned of a test of this grounder, if there was one.

    Raises:
        ValueError: If the folder holds something else, or the grounder's arguments are not JSON.
    """
    folder = Path(folder)
    check_replaceable(folder, "grounder")
    config = grounder_config(grounder, backbone, trained_on)
    try:
        text = json.dumps(config, indent=2)
    except TypeError as error:
        raise ValueError(
            f"the arguments of {config['class_path']} and the facts of its backbone must be JSON "
            f"values to be saved: {error}"
        ) from None
    with replacing(folder) as partial:
        (partial / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_file(_state(grounder), partial / WEIGHTS)
        make_card(config, results).save(partial / CARD)
        if results is not None:
            (partial / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _state(grounder: Grounder) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in grounder.state_dict().items()}


def weights_digest(grounder: Grounder) -> str:
    """Hex digest of what a test of a grounder measures: its weights, as float32, and threshold."""
    state = _state(grounder)
    whole = {name: x.float() if x.is_floating_point() else x for name, x in state.items()}
    total = hashlib.sha256(save(whole))
    total.update(repr(float(grounder.threshold)).encode())
    return total.hexdigest()


def split_facts(
    vocabulary: Vocabulary, taught: Collection[int] = (), practices: Collection[str] = ()
) -> dict:
    """Return what a grounder folder says of the vocabulary that the grounder was trained with.

    Args:
        vocabulary: Classes and split.
        taught: Ids of classes whose masks it has learnt from; the seen ones always count.
        practices: What was done in its training that a protocol may rule out.
    """
    return {
        "name": vocabulary.name,
        "digest": vocabulary.digest,
        "split": vocabulary.split,
        "seen": [vocabulary[i].name for i in vocabulary.seen],
        "unseen": [vocabulary[i].name for i in vocabulary.unseen],
        "trained_on": [vocabulary[i].name for i in sorted({*vocabulary.seen, *taught})],
        "practices": sorted(practices),
    }


def known_facts(grounder: Grounder, vocabulary: Vocabulary) -> dict:
    """Return `split_facts`, and what is known of a grounder that was loaded from a folder."""
    facts = split_facts(vocabulary, practices=grounder.learnt_from.get("practices", ()))
    before = grounder.learnt_from.get("trained_on", ())
    return facts | {"trained_on": list(dict.fromkeys([*facts["trained_on"], *before]))}


def taught_names(config: dict) -> set[str]:
    """Return the names of the classes whose masks a grounder has learnt from.

    They are to be read by `Vocabulary.taught`; a folder that does not say counts as taught all.

    Args:
        config: Of `read_config`.
    """
    vocabulary = config.get("vocabulary") or {}
    return set(vocabulary.get("trained_on", vocabulary.get("seen", [EVERY])))


def taught_practices(config: dict) -> list[str]:
    """Return what was done in a grounder's training that a protocol may rule out.

    Args:
        config: Of `read_config`.
    """
    return (config.get("vocabulary") or {}).get("practices", [])


def grounder_config(grounder: Grounder, backbone: DiffusionBackbone, trained_on: dict) -> dict:
    """Return the content of a grounder's ``config.json``."""
    facts = backbone.describe()
    return {
        "class_path": f"{type(grounder).__module__}.{type(grounder).__qualname__}",
        "init_args": grounder.init_args,
        "feature_spec": grounder.feature_spec.to_dict(),
        "text_width": grounder.text_width,
        "threshold": float(grounder.threshold),
        "backbone": facts,
        "backbone_digest": backbone.digest,
        **({"attention": facts.get("attention")} if grounder.reads_attention else {}),
        "vocabulary": trained_on,
        "ovseg": ovseg.__version__,
    }


def find_grounder(
    source: str | Path, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """Return the folder of a grounder, downloaded if need be.

    Args:
        source: A grounder folder, a Hub id such as "owner/name", or "clipart", the embedded one.
        revision: Commit, branch or tag on the Hub.
        local_files_only: Never ask the Hub; use what has been downloaded before.

    Raises:
        FileNotFoundError: If a Hub id is neither a folder, nor in the cache, nor on the Hub.
    """
    folder = locate(source, "grounder")
    if folder.exists() or not is_hub_id(source):
        return folder
    return hub_folder(source, (CONFIG, WEIGHTS), (RESULTS,), revision, local_files_only)


def read_config(source: str | Path) -> dict[str, Any]:
    """Read and check a grounder's ``config.json``.

    Args:
        source: As in `find_grounder`.

    Raises:
        FileNotFoundError: If there is no grounder.
        ValueError: If the file is not one of ours, or a value in it is none that it could be.
    """
    path = find_grounder(source) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"no grounder in {path.parent}: it has no {CONFIG}; `fit` writes one to "
            "model.init_args.output"
        )
    config = read_json(path)
    check_config(path, config, "grounder")
    return config


def folder_digest(source: str | Path) -> str:
    """Hex digest of a grounder: its class, arguments, threshold and weights."""
    folder = find_grounder(source)
    config = read_config(folder)
    facts = {key: config[key] for key in sorted(NEEDED["grounder"])}
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    total.update((folder / WEIGHTS).read_bytes())
    return total.hexdigest()[:16]


def load_grounder(source: str | Path, backbone: DiffusionBackbone | None = None) -> Grounder:
    """Load a grounder on CPU, in eval mode.

    Args:
        source: As in `find_grounder`.
        backbone: Whose features it will be given; None leaves that unchecked.

    Raises:
        FileNotFoundError: If there is no grounder.
        ValueError: If class, weights or backbone do not fit; shows the difference.
    """
    folder = find_grounder(source)
    config = read_config(folder)
    grounder = _build(config, folder)
    if backbone is not None:
        check_backbone(config, backbone, folder)
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
            f"{first_of(differing, '; ')}"
        )
    grounder.load_state_dict(state)
    grounder.threshold = float(config["threshold"])
    practices = taught_practices(config)
    grounder.learnt_from = {"trained_on": sorted(taught_names(config)), "practices": practices}
    return grounder.eval()


def _shape(tensor) -> str:
    return "absent" if tensor is None else str(tuple(tensor.shape))


def _build(config: dict, folder: Path) -> Grounder:
    kind = class_of(config["class_path"], Grounder, folder)
    try:
        spec = FeatureSpec(**config["feature_spec"])
        return kind(spec, config["text_width"], **config["init_args"])
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"cannot build the {config['class_path']} of {folder}; has its class changed? {error}"
        ) from error
