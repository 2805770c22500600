"""Turn a checkpoint of the grounding module that Li et al. released into a grounder folder.

python tools/import_grounder.py CKPT.pth OUT --config configs/grounding/voc_sd15_fusion.yaml
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from ovseg.backbones.base import DiffusionBackbone
from ovseg.backbones.taps import SD1_TAPS
from ovseg.errors import one_line, run_tool
from ovseg.grounders.folder import save_grounder
from ovseg.grounders.fusion import FusionGrounder
from ovseg.grounders.released import convert
from ovseg.vocabulary import Vocabulary

NORMS = {"image": "instance", "stored": "batch"}


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, and say where the result is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="the released .pth")
    parser.add_argument("out", type=Path, help="the grounder folder to write")
    parser.add_argument("--config", type=Path, required=True, help="names backbone and vocabulary")
    parser.add_argument("--split", help="whose seen classes it was trained on (the config's)")
    parser.add_argument(
        "--statistics",
        choices=NORMS,
        default="image",
        help="of its normalisation: each image's, as the released test code does, or the stored",
    )
    args = parser.parse_args(argv)
    given = (args.checkpoint, args.out, args.config, args.split, NORMS[args.statistics])
    code = run_tool("import_grounder", lambda: run(*given))
    if code == 0:
        print(f"{args.out}: use it as the folder of a GrounderAnnotator, or by from_pretrained")
    return code


def run(checkpoint: Path, out: Path, config: Path, split: str | None, norm: str) -> None:
    """Convert one checkpoint.

    Raises:
        FileNotFoundError: If the checkpoint or the config is missing.
        ValueError: If one of them is not what it should be, or weights, backbone and module do not
            fit together.
    """
    for path in (checkpoint, config):
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}")
    data = _arguments(config)
    vocabulary = Vocabulary.load(str(data["vocabulary"]), split or str(data.get("split", "1")))
    backbone = _backbone(data["backbone"])
    spec = backbone.feature_spec
    if tuple(spec.taps) != SD1_TAPS or (spec.steps, spec.branches) != (1, 2):
        raise ValueError(
            "the released module reads the 25 blocks of Stable Diffusion 1.x (SD1_TAPS), of both "
            f"guidance branches at one step; {config} gives {len(spec.taps)} taps, "
            f"{spec.branches} branch(es), {spec.steps} step(s)"
        )
    grounder = FusionGrounder(spec, backbone.text_width, norm=norm)
    grounder.load_state_dict(convert(_weights(checkpoint), grounder))
    save_grounder(grounder, out, backbone, vocabulary)


def _arguments(config: Path) -> Mapping[str, Any]:
    """Return the arguments of a config's data module."""
    try:
        data = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is no YAML: {error}") from None
    for key in ("data", "init_args"):
        data = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or None in (data.get("backbone"), data.get("vocabulary")):
        raise ValueError(f"{config} names no data.init_args.backbone and vocabulary")
    return data


def _backbone(value: Any) -> DiffusionBackbone:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DiffusionBackbone, "backbone")
    return parser.instantiate(parser.parse_object({"backbone": value})).backbone


def _weights(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of text and damaged bytes the unpickler raises many kinds
        if one_line(error):
            raise
        raise ValueError(f"{path} is no file of weights: it is damaged, or a text") from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = isinstance(state, Mapping) and all(map(torch.is_tensor, state.values()))
    if not tensors:
        raise ValueError(f"{path} holds no state dict of tensors")
    return state


if __name__ == "__main__":
    sys.exit(main())
