"""Where a dataset's files lie: in a folder, or behind a URL that is fetched shard by shard."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from ovseg.data.fetch import fetch_bytes, fetch_file, is_url, split_query
from ovseg.data.manifest import DATASET, read_manifest, write_json

CACHE = "~/.cache/ovseg/datasets"


class Source(ABC):
    """A complete dataset; its text is what a user calls it.

    Attributes:
        manifest: `dataset.json`; nothing is read before it is asked for.
    """

    manifest: dict

    @abstractmethod
    def shard(self, name: str) -> Path:
        """Return where a shard lies on this disk."""


class LocalSource(Source):
    """A folder that `predict` wrote.

    Args:
        path: The folder.
    """

    def __init__(self, path: str) -> None:
        self.folder = Path(path)

    def __str__(self) -> str:
        return str(self.folder)

    @cached_property
    def manifest(self) -> dict:
        """`dataset.json`; the shards have the sizes that it tells."""
        return read_manifest(self.folder)

    def shard(self, name: str) -> Path:
        """Return where a shard lies."""
        return self.folder / name


class RemoteSource(Source):
    """A dataset behind a URL, through fsspec; a shard is fetched whole when it is first needed.

    It comes into a folder that is named by the content of `dataset.json`, and gets its name there
    when its size and SHA-256 are those that `dataset.json` tells; meanwhile other processes that
    need it wait. With all shards that folder is a dataset like any other.

    Args:
        url: Of the dataset's folder: http(s)://, s3://, gs://, hf://... The query of a web address,
            say a signature that is good for the folder, is sent with every file.
        cache: Folder of all fetched datasets.

    Raises:
        ValueError: If it is the URL of a file.
    """

    def __init__(self, url: str, cache: str | None = None) -> None:
        place, self._query = split_query(url)
        self.url = place.rstrip("/")
        if self.url.endswith((".tar", ".json")):
            raise ValueError(f"{self.url} is a file: give the URL of the dataset's folder")
        self.cache = Path(cache or CACHE).expanduser()

    def __str__(self) -> str:
        return self.url

    def _file(self, name: str) -> str:
        return f"{self.url}/{name}{self._query}"

    @cached_property
    def _content(self) -> bytes:
        return fetch_bytes(self._file(DATASET))

    @cached_property
    def manifest(self) -> dict:
        """`dataset.json`, fetched.

        Raises:
            FileNotFoundError, ImportError, OSError, ValueError: If it cannot be.
            ValueError: If it is not what `predict` wrote.
        """
        content = self._content
        try:
            manifest = json.loads(content)
            names = [name for name, facts in manifest["shards"].items() if facts["sha256"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{self.url}/{DATASET} is not what `predict` wrote") from None
        if foreign := [name for name in names if not re.fullmatch(r"shard-\d+\.tar", name)]:
            raise ValueError(f"{self.url}/{DATASET} names a shard {foreign[0]!r}")
        return manifest

    @cached_property
    def folder(self) -> Path:
        """Where the files come to; the first of them is `dataset.json`."""
        folder = self.cache / hashlib.sha256(self._content).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / DATASET):
            write_json(folder / DATASET, self.manifest)
        return folder

    def shard(self, name: str) -> Path:
        """Return where a shard lies, fetched if need be.

        Raises:
            FileNotFoundError, ImportError, OSError, ValueError: If it cannot be.
        """
        facts, path = self.manifest["shards"][name], self.folder / name
        if not _is_whole(path, facts):
            with _alone(path):
                if not _is_whole(path, facts):
                    fetch_file(self._file(name), path, facts["bytes"], facts["sha256"])
        return path


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process makes a file."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        yield


def _is_whole(path: Path, facts: dict) -> bool:
    return path.is_file() and path.stat().st_size == facts["bytes"]


def source_of(path: str, cache: str | None = None) -> Source:
    """Return where a dataset lies.

    Args:
        path: Folder or URL.
        cache: Folder of datasets that were fetched from URLs.
    """
    return RemoteSource(path, cache) if is_url(path) else LocalSource(path)
