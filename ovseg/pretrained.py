"""What the folders of diffusers and transformers have in common: content, licence, noise."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def content(path: Path) -> bytes:
    """Hash a file's content; of a configuration, what its writer's version does not change.

    Under a second per GB from memory, in every process once as long as size and time of the file
    stay.
    """
    if path.name in {"config.json", "tokenizer_config.json"}:
        data = read_json(path)
        kept = {k: v for k, v in data.items() if k[0] != "_" and k != "transformers_version"}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).digest()
    facts = path.stat()
    return _hash(path.absolute(), facts.st_size, facts.st_mtime_ns)


@cache
def _hash(path: Path, size: int, time: int) -> bytes:
    """Hash size and bytes of a file that was last written at a time in ns."""
    total = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return total.digest()


def licence_in(card: str) -> str | None:
    """Return the licence that a model card names, if it names one."""
    found = re.search(r"^license:\s*(\S+)", card, flags=re.MULTILINE)
    return found.group(1) if found else None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and warnings of diffusers and transformers for a while."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = (diffusers_log, transformers_log)
    levels = [log.get_verbosity() for log in logs]
    bars = transformers_log.is_progress_bar_enabled()
    for log in logs:
        log.set_verbosity_error()
    transformers_log.disable_progress_bar()
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.set_verbosity(level)
        if bars:
            transformers_log.enable_progress_bar()
