"""Is a file a checkpoint of `ovseg fit`? Asked before anything is built."""

from __future__ import annotations

from pathlib import Path

from ovseg.pretrained import read_torch

LEFT_TO_LIGHTNING = ("best", "last", "hpc")
"""What it looks up itself; also URLs, folders, and what does not exist."""


def check_checkpoint(ckpt_path: str | Path | None) -> None:
    """Refuse a file that `ckpt_path` cannot be; its tensors are not read.

    Raises:
        ValueError: If it is damaged, or holds something else.
    """
    if ckpt_path is None or str(ckpt_path) in LEFT_TO_LIGHTNING or not Path(ckpt_path).is_file():
        return
    content = None
    if Path(ckpt_path).suffix != ".safetensors":
        try:
            content = read_torch(ckpt_path)
        except ValueError:
            raise ValueError(
                f"the weights of checkpoint {ckpt_path} cannot be read: the file is damaged, or "
                "holds pickled objects; take another one"
            ) from None
    if not isinstance(content, dict) or not {"pytorch-lightning_version", "state_dict"} <= set(
        content
    ):
        raise ValueError(
            f"{ckpt_path} is not a checkpoint of `ovseg fit`: give one of those as ckpt_path; "
            "weights alone go to model.init_args.segmenter.init_args.checkpoint"
        )
