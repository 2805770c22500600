"""The files of a diffusers pipeline, in a folder or on the Hub, and what is made of them."""

from __future__ import annotations

import hashlib
import importlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ovseg.embedded import EMBEDDED, locate
from ovseg.hub import hub_file, is_hub_id
from ovseg.pretrained import content, licence_in, quiet

PARTS = ("unet", "text_encoder", "tokenizer", "vae", "transformer")
PARTS += ("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
"""What decides images and features."""


class PipelineFiles:
    """Where the parts of a diffusers pipeline lie.

    Args:
        model: A folder, a Hub id such as "owner/name", or "clipart", the embedded one.
        revision: Commit, branch or tag on the Hub.
        variant: Variant of the weight files, e.g. "fp16".
        local_files_only: Never ask the Hub; use what has been downloaded before.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        variant: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        self.model, self.revision, self.variant = model, revision, variant
        self.local_files_only = local_files_only

    @cached_property
    def folder(self) -> Path | None:
        """The model's folder, or None if it lies on the Hub.

        Raises:
            FileNotFoundError: If there is no such folder and the name is no Hub id.
        """
        folder = locate(self.model, "pipeline")
        if (folder / "model_index.json").is_file():
            return folder
        if folder.exists() or self.model == EMBEDDED:
            raise FileNotFoundError(
                f"no diffusers pipeline in {folder}: it has no model_index.json"
            )
        if not is_hub_id(self.model):
            raise FileNotFoundError(
                f"no model {self.model!r}: there is no folder {folder.absolute()}; give one, a Hub "
                f"id (owner/name) or {EMBEDDED!r}"
            )
        return None

    def path(self, name: str) -> Path:
        """Return a file on disk, downloaded if need be.

        Raises:
            FileNotFoundError: If there is none.
        """
        if self.folder is not None:
            path = self.folder / name
            if not path.is_file():
                raise FileNotFoundError(
                    f"the model {self.model!r} has no file {name}: no {path.absolute()}"
                )
            return path
        return hub_file(self.model, name, self.commit, self.local_files_only)

    def config(self, name: str) -> dict:
        """Read a JSON file.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is no JSON object.
        """
        try:
            data = json.loads(self.path(name).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} of the model {self.model!r} is no JSON: {error}") from None
        if not isinstance(data, dict):
            raise ValueError(f"{name} of the model {self.model!r} must hold a JSON object")
        return data

    @cached_property
    def index(self) -> dict:
        """``model_index.json``: class and library of each part."""
        return self.config("model_index.json")

    def has(self, part: str) -> bool:
        """Say whether the pipeline has a part, e.g. "text_encoder_2"."""
        return any(self.index.get(part) or ())

    @cached_property
    def clip_encoders(self) -> list[str]:
        """The text encoders that are CLIP's: "text_encoder" and, of some, "text_encoder_2"."""
        parts = filter(self.has, ("text_encoder", "text_encoder_2"))
        return [part for part in parts if self.index[part][1].startswith("CLIP")]

    @cached_property
    def commit(self) -> str | None:
        """The Hub commit that `revision` stands for; None for a folder.

        All files are of it, even if a branch moves on while they are read.
        """
        if self.folder is not None:
            return None
        index = hub_file(self.model, "model_index.json", self.revision, self.local_files_only)
        snapshot = index.parent
        return snapshot.name if snapshot.parent.name == "snapshots" else self.revision

    @cached_property
    def licence(self) -> str | None:
        """The licence named by the model card, if it has one."""
        if self.model == EMBEDDED:
            return "apache-2.0"
        try:
            card = self.path("README.md").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None
        return licence_in(card)

    @cached_property
    def digest(self) -> str:
        """Hex digest of the content: bytes of a folder's files, or id and commit on the Hub."""
        if self.folder is None:
            return hashlib.sha256(f"{self.model}@{self.commit}".encode()).hexdigest()
        total = hashlib.sha256()
        for part in filter(self.has, PARTS):
            for path in sorted((self.folder / part).iterdir()):
                if self._counts(path):
                    total.update(f"{part}/{path.name}".encode())
                    total.update(content(path))
        return total.hexdigest()

    def _counts(self, path: Path) -> bool:
        if path.suffix != ".safetensors":
            return path.suffix in {".json", ".txt"}
        variant = path.name.split(".", 1)[1].removesuffix("safetensors").strip(".")
        return (variant.split("-")[0] or None) == self.variant

    def kind(self, library: str, name: str | None) -> Any:
        """Return a class that a file of the model names.

        Raises:
            ValueError: If the library that is installed has none of that name.
        """
        module = importlib.import_module(library)
        try:
            return getattr(module, str(name))
        except AttributeError:
            raise ValueError(
                f"the model {self.model!r} wants the class {name!r} of {library}; {library} "
                f"{module.__version__} has none"
            ) from None

    def load(self, part: str, dtype: torch.dtype | None = None) -> Any:
        """Load one part of the pipeline by the class that ``model_index.json`` names.

        Weights are read from safetensors alone.

        Raises:
            ValueError: If the part is missing, or its class or files cannot be loaded.
        """
        from safetensors import SafetensorError

        library, name = self.index.get(part) or (None, None)
        if library not in {"diffusers", "transformers"}:
            raise ValueError(
                f"the model {self.model!r} has no {part} of diffusers or transformers, but {name}"
            )
        kind = self.kind(library, name)
        options: dict[str, Any] = {"subfolder": part, "local_files_only": self.local_files_only}
        if self.folder is None:
            options["revision"] = self.commit
        if dtype is not None:
            options |= {"use_safetensors": True, "variant": self.variant}
            options["torch_dtype" if library == "diffusers" else "dtype"] = dtype
        try:
            with quiet():
                return kind.from_pretrained(str(self.folder or self.model), **options)
        except (OSError, RuntimeError, SafetensorError) as error:
            line = " ".join(str(error).split())[:300]
            raise ValueError(f"cannot load {part} of the model {self.model!r}: {line}") from error
