"""Weights of MMSegmentation's networks: found, downloaded, read without unpickling, checked."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ovseg.errors import importing_mmseg
from ovseg.segmenters.loading import said_of_training, say_loaded
from ovseg.segmenters.unpickling import load_plain

TABLE = "open-mmlab://"
"""What a name of MMEngine's table of weights begins with."""
MADE_ELSEWHERE = ("num_batches_tracked", "relative_position_index")
"""Ends of names of tensors that need not be in a file: counts, and what follows from the sizes."""
OUTPUT_NORM = re.compile(r"norm\d\.")
"""Norms of a Swin's or a ConvNeXt's outputs, which no classifier has had."""


def load_backbone(backbone: nn.Module, source: str) -> dict[str, list[str]]:
    """Load pretrained weights of a backbone, and print how many were used.

    Args:
        backbone: Of a network of MMSegmentation.
        source: A file, a URL, or a name of MMEngine's table such as "open-mmlab://resnet50_v1c".

    Returns:
        What `said_of_training` finds, less the classes, which a backbone does not depend on.

    Raises:
        FileNotFoundError: If there is no such file, or it cannot be downloaded.
        ValueError: If there is no such name, or the weights are of another architecture.
    """
    path = find_weights(source)
    prefixes = ("segmenter.model.backbone.", "model.backbone.", "backbone.")
    state, said = read_state(path)
    state = _under(state, prefixes)
    own = backbone.state_dict()
    left = {key for key in state if key not in own}
    classifier = {key for key in left if key.startswith(("fc.", "head.", "classifier.", "norm."))}
    made = {key for key in own if key not in state and OUTPUT_NORM.match(key)}
    _fill(backbone, state, source, classifier, made)
    say_loaded(source, len(own), made, classifier)
    return {key: value for key, value in said.items() if key != "classes"}


def load_network(network: nn.Module, path: str) -> dict[str, list[str]]:
    """Load weights of a whole network; those of auxiliary heads may be left over.

    Returns:
        What `said_of_training` finds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the weights are of another architecture, or of another number of classes.
    """
    state, said = read_state(path)
    state = _under(state, ("segmenter.model.", "model."))
    left = {key for key in state if key.startswith("auxiliary_head.")}
    _fill(network, state, path, left, set())
    return said


def find_weights(source: str) -> str:
    """Return the path of a file of weights, downloaded into torch.hub's cache if need be.

    Raises:
        FileNotFoundError: If it cannot be downloaded.
        ValueError: If MMEngine's table has no such name.
    """
    url = _url(source.removeprefix(TABLE)) if source.startswith(TABLE) else source
    if not url.startswith(("http://", "https://")):
        return url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise FileNotFoundError(
                f"cannot download {url}: {error}; put it at {path}, or give another file"
            ) from None
    return str(path)


def read_state(path: str) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Read a state dict, and what `said_of_training` finds, without unpickling anything else.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds anything else.
    """
    content = read_checkpoint(path)
    state = state_of(content, path)
    whole = any("decode_head." in key for key in state)
    return state, said_of_training(path, content, whole)


def read_checkpoint(path: str) -> Any:
    """Read all that a file of weights holds, without unpickling anything but tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds objects that `unpickling` does not know.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights file {path}")
    return _read_safetensors(path) if str(path).endswith(".safetensors") else load_plain(path)


def state_of(checkpoint: Any, path: str) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint that was read from a path.

    Raises:
        ValueError: If it has none.
    """
    state = checkpoint
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    named = state.items() if isinstance(state, dict) else ()
    tensors = {k: v for k, v in named if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(
            f"weights {path} are no state dict: wanted tensors by name, got "
            f"{type(state).__name__} without any; save the network's state_dict()"
        )
    return tensors


def _read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"weights {path} are damaged, or no safetensors: {error}; get them once more"
        ) from None


def _url(name: str) -> str:
    with importing_mmseg():
        from mmengine.runner.checkpoint import get_external_models
    table = get_external_models()
    if name not in table:
        near = ", ".join(difflib.get_close_matches(name, table, n=3, cutoff=0.4))
        raise ValueError(f"MMEngine knows no weights {TABLE}{name}; near are {near or 'none'}")
    return table[name]


def _under(state: dict[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Return what lies under the first prefix that occurs, without it; all, if none occurs."""
    prefix = next((p for p in prefixes if any(key.startswith(p) for key in state)), "")
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


def _fill(
    module: nn.Module, state: dict[str, Tensor], source: str, unused: set[str], made: set[str]
) -> None:
    """Load a state that must cover the module but for `made`, and hold no more than `unused`."""
    own = module.state_dict()
    missing = [
        k for k in own if k not in state and k not in made and not k.endswith(MADE_ELSEWHERE)
    ]
    left = [key for key in state if key not in own and key not in unused]
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    counts = set() if missing or left else _other_counts(own, state, wrong)
    if len(counts) == 1:
        ((there, here),) = counts
        raise ValueError(
            f"{source} has {there} classes, {here} are wanted: set data.vocabulary to that of the "
            "training"
        )
    if missing or left or wrong:
        first = (missing + left + wrong)[0]
        raise ValueError(
            f"weights {source} are of another architecture: {len(missing)} tensors missing, "
            f"{len(left)} unknown, {len(wrong)} of another shape, the first is {first}"
        )
    module.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def _other_counts(
    own: dict[str, Tensor], state: dict[str, Tensor], wrong: list[str]
) -> set[tuple[int, int]]:
    """Return the numbers of classes there and here, if nothing but the classifiers differs."""
    pairs = [(state[key].shape, own[key].shape) for key in wrong if ".conv_seg." in key]
    if len(pairs) < len(wrong) or any(a[1:] != b[1:] or len(a) != len(b) for a, b in pairs):
        return set()
    return {(there[0], here[0]) for there, here in pairs}
