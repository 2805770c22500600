"""A model of transformers: where it lies, and how it is loaded."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ovseg.hub import hub_folder, is_hub_id
from ovseg.pretrained import content, licence_in, quiet

CONFIG, CARD = "config.json", "README.md"
STATISTICS = ("running_mean", "running_var")
_KINDS = (".json", ".safetensors", ".txt", ".jinja", ".model")


class Checkpoint:
    """A model of transformers in a folder or on the Hub.

    Args:
        source: A folder, or a Hub id such as "owner/name".
        revision: Commit, branch or tag on the Hub.
        local_files_only: Never ask the Hub; use what has been downloaded before.

    Raises:
        FileNotFoundError: If there is no model.
    """

    def __init__(
        self, source: str, revision: str | None = None, local_files_only: bool = False
    ) -> None:
        self.source = source
        self.folder, self.commit = Path(source), None
        if not self.folder.exists():
            if not is_hub_id(source):
                raise FileNotFoundError(
                    f"no model {source!r}: give a folder or a Hub id (owner/name)"
                )
            wanted = [CARD, *(f"*{kind}" for kind in _KINDS)]
            self.folder = hub_folder(source, [CONFIG], wanted, revision, local_files_only)
            self.commit = self.folder.name
        if not (self.folder / CONFIG).is_file():
            raise FileNotFoundError(f"no model of transformers in {source}: it has no {CONFIG}")

    @cached_property
    def config(self) -> Any:
        """The model's configuration, e.g. a `Mask2FormerConfig`.

        Raises:
            ValueError: If transformers cannot read it.
        """
        from transformers import AutoConfig

        return self.part(AutoConfig, {})

    def part(self, kind: Any, options: dict) -> Any:
        """Load a part by the ``from_pretrained`` of a class of transformers; no code comes with it.

        Raises:
            ValueError: If its files are missing, damaged or of another kind.
        """
        own = {"local_files_only": True, "trust_remote_code": False}
        try:
            with quiet():
                return kind.from_pretrained(str(self.folder), **own, **options)
        except (OSError, RuntimeError, KeyError, ImportError, ValueError) as error:
            line = " ".join(str(error).replace(str(self.folder), "it").split())[:300]
            raise ValueError(
                f"cannot load the {kind.__name__} of {self.source!r}: {line}"
            ) from error

    def image_processor(self) -> Any:
        """Load the image processor that needs no torchvision.

        Raises:
            ValueError: If there is none.
        """
        from transformers import AutoImageProcessor

        options = {"backend": "pil"}
        if self.config.model_type == "oneformer":  # a file on the Hub that only training reads
            options["class_info_file"] = None
        return self.part(AutoImageProcessor, options)

    def tokenizer(self) -> Any:
        """Load the tokenizer.

        Raises:
            ValueError: If there is none.
        """
        from transformers import AutoTokenizer

        return self.part(AutoTokenizer, {})

    def model(self, kind: Any) -> nn.Module:
        """Load the weights, from safetensors alone: float32, frozen, in eval mode.

        Raises:
            ValueError: If they are missing, or lack a part of the model.
        """
        options = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
        model, facts = self.part(kind, options)
        named = {name for name, _ in model.named_parameters()}
        # of the buffers, those that training has filled; others are made with the model
        named |= {name for name in model.state_dict() if name.endswith(STATISTICS)}
        if missing := sorted(named & set(facts["missing_keys"])):
            raise ValueError(
                f"the weights of {self.source!r} are not those of a {type(model).__name__}: "
                f"{len(missing)} of its tensors are missing, {missing[0]} for one"
            )
        return model.requires_grad_(False).eval()

    @cached_property
    def digest(self) -> str:
        """Hex digest of the configurations and weights."""
        total = hashlib.sha256()
        for path in sorted(self.folder.iterdir()):
            if path.suffix in _KINDS:
                total.update(path.name.encode() + content(path))
        return total.hexdigest()[:16]

    def describe(self) -> dict:
        """Return JSON-ready facts: source, revision, licence and digest."""
        card = self.folder / CARD
        return {
            "source": f"transformers:{self.source}",
            "revision": self.commit,
            "licence": licence_in(card.read_text(encoding="utf-8")) if card.is_file() else None,
            "digest": self.digest,
        }
