"""Is a file a checkpoint of `ovseg fit`? Asked before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

LEFT_TO_LIGHTNING = ("best", "last", "hpc")
"""What it looks up itself; also folders, and what does not exist."""
ZIP = b"PK\x03\x04"
"""What a torch file begins with, but for very old ones, which cannot be mapped."""


def check_checkpoint(ckpt_path: str | Path | None) -> None:
    """Refuse a file that `ckpt_path` cannot be; its tensors are not read.

    Raises:
        ValueError: If it is damaged, holds something else, or lies on the web, from where Lightning
            would unpickle whatever it is given.
    """
    if str(ckpt_path).lower().startswith(("http:", "https:")):
        raise ValueError(
            f"ckpt_path {ckpt_path} is a web address, which is not read as safely as a file: "
            "download it and give the file"
        )
    if ckpt_path is None or str(ckpt_path) in LEFT_TO_LIGHTNING or not Path(ckpt_path).is_file():
        return
    content = None
    if Path(ckpt_path).suffix != ".safetensors":
        content = _read(Path(ckpt_path))
    if not isinstance(content, dict) or not {"pytorch-lightning_version", "state_dict"} <= set(
        content
    ):
        raise ValueError(
            f"{ckpt_path} is not a checkpoint of `ovseg fit`: give one of those as ckpt_path; "
            "weights alone go to model.init_args.segmenter.init_args.checkpoint"
        )


def _read(path: Path) -> Any:
    """Read a torch file, its tensors mapped."""
    with path.open("rb") as file:
        mapped = file.read(len(ZIP)) == ZIP
    try:
        return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except Exception:  # of damaged bytes torch raises a dozen kinds
        raise ValueError(
            f"the weights of checkpoint {path} cannot be read: the file is damaged, or holds "
            "pickled objects; take another one"
        ) from None
