"""A trained segmenter as a folder: ``config.json`` and ``model.safetensors``.

The configuration says its class and arguments, the keys of its classes, and of which of them
somebody drew the masks that it has been trained with; and what a protocol may rule out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ovseg.kept import CONFIG, WEIGHTS, check_config, check_replaceable, class_of, replacing
from ovseg.pretrained import read_json
from ovseg.segmenters.base import Segmenter
from ovseg.vocabulary import Vocabulary


class LoadedSegmenter(NamedTuple):
    """What a folder holds.

    Attributes:
        segmenter: In float32 and eval mode.
        keys: Of its classes, without background.
        trained_on: Keys of the classes of which somebody drew masks that it has learnt from.
        practices: What was done in its training that a protocol may rule out.
        digest: Of configuration and weights.
    """

    segmenter: Segmenter
    keys: list[str]
    trained_on: list[str]
    practices: list[str]
    digest: str


def save_segmenter(
    segmenter: Segmenter,
    folder: str | Path,
    vocabulary: Vocabulary,
    trained_on: Iterable[int] | None = None,
    practices: Iterable[str] = (),
) -> None:
    """Write the folder of a segmenter of all classes of a vocabulary, all or nothing.

    Args:
        segmenter: A trained one.
        folder: Where; an older one of its kind is replaced.
        vocabulary: Its classes.
        trained_on: Ids of the classes of which somebody drew masks that it has learnt from; None
            stands for all.
        practices: What was done in its training that a protocol may rule out.

    Raises:
        ValueError: If its number of classes is not the vocabulary's, its arguments are not
            JSON-ready, or the folder holds something else.
    """
    check_replaceable(Path(folder), "segmenter")
    text = _config(segmenter, vocabulary, trained_on, practices)
    state = {
        key: value.detach().cpu().contiguous() for key, value in segmenter.state_dict().items()
    }
    with replacing(Path(folder)) as partial:
        save_file(state, partial / WEIGHTS)
        (partial / CONFIG).write_text(text, encoding="utf-8")


def check_saveable(segmenter: Segmenter, vocabulary: Vocabulary) -> None:
    """Fail now if `save_segmenter` would in the end.

    Raises:
        ValueError: As there.
    """
    _config(segmenter, vocabulary)


def _config(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    trained_on: Iterable[int] | None = None,
    practices: Iterable[str] = (),
) -> str:
    if segmenter.num_classes != vocabulary.num_classes:
        raise ValueError(
            f"the segmenter has {segmenter.num_classes} classes, vocabulary {vocabulary.name!r} "
            f"has {vocabulary.num_classes} with background"
        )
    kind = type(segmenter)
    taught = vocabulary.select("all") if trained_on is None else sorted(trained_on)
    config = {
        "segmenter": {
            "class_path": f"{kind.__module__}.{kind.__qualname__}",
            "init_args": {"num_classes": segmenter.num_classes, **segmenter.init_args},
        },
        "classes": [c.key for c in vocabulary.classes],
        "trained_on": [vocabulary[i].key for i in taught],
        "practices": sorted(practices),
        "vocabulary": vocabulary.name,
    }
    try:
        return json.dumps(config, indent=2) + "\n"
    except TypeError as error:
        raise ValueError(
            f"a {kind.__name__} cannot be written to a folder: its arguments are not JSON-ready "
            f"({error})"
        ) from None


def load_segmenter(folder: Path) -> LoadedSegmenter:
    """Load what `save_segmenter` wrote.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        ValueError: If the weights do not fit the configuration.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"no segmenter in {folder}: it has no {name}; `fit` of a segmentation module "
                "writes one to model.init_args.output, tools/import_segmenter.py makes one of an "
                "MMSegmentation checkpoint"
            )
    config = read_json(folder / CONFIG)
    check_config(folder / CONFIG, config, "segmenter")
    made = config["segmenter"]
    kind = class_of(made["class_path"], Segmenter, folder)
    try:
        segmenter = kind(**made["init_args"])
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"cannot build the {made['class_path']} of {folder}; has its class changed? {error}"
        ) from error
    try:
        state = load_file(folder / WEIGHTS)
        segmenter.load_state_dict({key: _float(value) for key, value in state.items()})
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights in {folder} do not fit its {CONFIG}: {reason}") from None
    keys = list(config["classes"])
    content = (folder / CONFIG).read_bytes() + (folder / WEIGHTS).read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    said = (list(config.get("trained_on", keys)), list(config.get("practices", ())))
    return LoadedSegmenter(segmenter.eval(), keys, *said, digest)


def _float(tensor):
    return tensor.float() if tensor.is_floating_point() else tensor
