"""Where a dataset's files lie: in a folder, or behind a URL that is fetched shard by shard."""

from __future__ import annotations

import fcntl
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from ovseg.data.contents import digest_of
from ovseg.data.fetch import fetch_bytes, fetch_file, is_url, split_query
from ovseg.data.json_file import parse_json
from ovseg.data.manifest import DATASET, NEEDED, read_manifest, write_json
from ovseg.vocabulary import Vocabulary

CACHE = "~/.cache/ovseg/datasets"


class Source(ABC):
    """A complete dataset; its text is what a user calls it.

    Attributes:
        manifest: `dataset.json`; nothing is read before it is asked for.
    """

    manifest: dict

    @property
    def digest(self) -> str:
        """Hex digest of its configuration and its shards, wherever it lies."""
        shards = {name: facts["sha256"] for name, facts in self.manifest["shards"].items()}
        return digest_of({"config": self.manifest["config_digest"], "shards": shards})

    def check(self, vocabulary: Vocabulary) -> None:
        """Check that the masks mean what the vocabulary says.

        Raises:
            ValueError: If it was made with other classes, another split or other unseen classes.
        """
        there = self.manifest["vocabulary"]
        here = {"name": vocabulary.name, "digest": vocabulary.digest, "split": vocabulary.split}
        for key, words in (("digest", "classes"), ("split", "split")):
            if there[key] != here[key]:
                raise ValueError(
                    f"dataset {self} was made with the {words} of vocabulary "
                    f"{there['name']!r}, split {there['split']!r} (digest {there['digest']}), not "
                    f"{here['name']!r}, split {here['split']!r} (digest {here['digest']})"
                )
        unseen = [vocabulary[i].key for i in vocabulary.unseen]
        if there.get("unseen", unseen) != unseen:  # older datasets do not tell
            raise ValueError(
                f"dataset {self} was made with other unseen classes in split {there['split']!r}, "
                f"{', '.join(there['unseen']) or 'none'}; here they are "
                f"{', '.join(unseen) or 'none'}: give the vocabulary that it was made with"
            )

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
        path, advice = f"{self.url}/{DATASET}", "give the URL of a dataset that `predict` wrote"
        manifest = parse_json(self._content, path, NEEDED, advice)
        names = manifest["shards"]
        if foreign := [name for name in names if not re.fullmatch(r"shard-\d+\.tar", name)]:
            raise ValueError(f"{path} names a shard {foreign[0]!r}: {advice}")
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
