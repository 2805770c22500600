"""Copy what was trained into the package, in half precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from ovseg.embedded import WEIGHTS


def _halve(path: Path) -> None:
    state = load_file(path)
    half = {k: v.half() if v.dtype == torch.float32 else v for k, v in state.items()}
    save_file(half, path, metadata={"format": "pt"})


def _forget_origin(path: Path) -> None:
    """Drop the folder that a configuration was loaded from."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def export(folder: Path, out: Path, seed: int = 0, device: str = "cpu") -> None:
    """Replace the package's weights by those of a training folder, as float16 safetensors.

    A part that was not trained yet is left as it is.
    """
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    if (folder / "model_index.json").is_file():
        pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        shutil.rmtree(WEIGHTS / "pipeline", ignore_errors=True)
        pipeline.to(dtype=torch.float16).save_pretrained(
            WEIGHTS / "pipeline", safe_serialization=True
        )
        for path in (WEIGHTS / "pipeline").rglob("*.json"):
            if path.parent.name != "tokenizer":
                _forget_origin(path)
    for name in ("annotator", "grounder"):
        if (out / name / "config.json").is_file():
            shutil.rmtree(WEIGHTS / name, ignore_errors=True)
            shutil.copytree(out / name, WEIGHTS / name)
            _halve(WEIGHTS / name / "model.safetensors")
    if (out / "backbone.safetensors").is_file():
        shutil.copy(out / "backbone.safetensors", WEIGHTS)
        _halve(WEIGHTS / "backbone.safetensors")
    for path in sorted(WEIGHTS.rglob("*.safetensors")):
        print(f"{path.relative_to(WEIGHTS)}: {path.stat().st_size / 1e6:.2f} MB")
