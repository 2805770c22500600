"""The files of shards: their names, their index, what they hold."""

from __future__ import annotations

import hashlib
import os
import tarfile
import weakref
from collections.abc import Collection, Iterator
from pathlib import Path

from ovseg.data.shard_format import Record, decode_record

DATASET = "dataset.json"
"""The file that says that a dataset is complete."""

REJECTED = "rejected"
"""The folder, beside a filtered dataset's shards, of what was rejected."""


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:06d}.tar"


def shard_number(path: Path) -> int:
    """Return the number of a shard's file."""
    return int(path.name.split(".")[0].removeprefix("shard-"))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_shard(path: Path, sha256: str) -> None:
    """Compare a shard's bytes with those that were written.

    Args:
        path: The tar.
        sha256: What `dataset.json` says.

    Raises:
        ValueError: If they are others.
    """
    if (found := sha256_of(path)) != sha256:
        raise ValueError(damage(path, f"its SHA-256 is {found}, {DATASET} says {sha256}"))


def damage(path: Path, why: object) -> str:
    """Say in one line that a shard is damaged, what to do, and why."""
    advice = "delete it and run `predict` again, which makes only what is missing"
    if path.parent.name == REJECTED and (path.parents[1] / DATASET).is_file():
        advice = "rejects of a complete dataset are not needed any more, it may be deleted"
    return f"shard {path} is damaged: {advice} ({why})"


def index_shard(path: Path, samples: int | None = None) -> list[dict[str, tuple[int, int]]]:
    """Return ``{extension: (offset, size)}`` of every sample of a shard, in the order of the tar.

    Args:
        path: The tar.
        samples: Number of samples it must have.

    Raises:
        ValueError: If it is cut short, no tar, or has another number of samples.
    """
    return list(_table(path, samples).values())


def _table(path: Path, samples: int | None) -> dict[str, dict[str, tuple[int, int]]]:
    """Return ``{key: members}``; see `index_shard`."""
    table: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        length = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                table.setdefault(key, {})[extension] = (member.offset_data, member.size)
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
    except FileNotFoundError:
        raise ValueError(f"shard {path} is missing: run `predict` again") from None
    except (tarfile.TarError, OSError) as error:
        raise ValueError(damage(path, error)) from None
    if samples is not None and len(table) != samples:
        raise ValueError(damage(path, f"{len(table)} samples, not {samples}"))
    return table


class OpenShards:
    """Samples of shards at random: their indexes are kept, and the last opened files stay open.

    Reading moves no position, so that forked processes may share the files; a pickled copy opens
    its own.
    """

    MOST = 64
    """Files that stay open."""

    def __init__(self) -> None:
        self._indexes: dict[Path, list[dict[str, tuple[int, int]]]] = {}
        self._files: dict[Path, _File] = {}

    def __getstate__(self) -> dict:
        return {**vars(self), "_files": {}}

    def read(
        self, path: Path, samples: int, number: int, only: Collection[str] | None = None
    ) -> dict[str, bytes]:
        """Return ``{extension: bytes}`` of a sample of a shard; see `index_shard`.

        Args:
            path: The tar.
            samples: Number of samples it must have.
            number: Which of them.
            only: Extensions; others are not read.
        """
        if path not in self._indexes:
            self._indexes[path] = index_shard(path, samples)
        if path not in self._files:
            if len(self._files) == self.MOST:
                del self._files[next(iter(self._files))]
            self._files[path] = _File(path)
        file = self._files[path].descriptor
        return {
            extension: os.pread(file, size, offset)
            for extension, (offset, size) in self._indexes[path][number].items()
            if only is None or extension in only
        }


class _File:
    """A file that is open until nobody holds it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


def read_members(
    path: Path, samples: int | None = None, only: str | None = None
) -> Iterator[dict[str, bytes]]:
    """Yield ``{extension: bytes}`` of every sample of a shard; see `index_shard`.

    Args:
        path: The tar.
        samples: Number of samples it must have.
        only: One extension; the others are not read.
    """
    for _, members in _read(path, samples, only):
        yield members


def _read(
    path: Path, samples: int | None, only: str | None
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield key and members of every sample; see `read_members`."""
    table = _table(path, samples)
    with path.open("rb") as file:
        for key, members in table.items():
            data = {}
            for extension, (offset, size) in members.items():
                if only in (None, extension):
                    file.seek(offset)
                    data[extension] = file.read(size)
            yield key, data


def read_samples(
    path: Path, samples: int | None = None, only: str | None = None
) -> Iterator[tuple[Record, dict[str, bytes]]]:
    """Yield what is said of every sample of a shard, and its members; see `read_members`.

    Raises:
        ValueError: If what is said of one cannot be read.
    """
    for key, members in _read(path, samples, only):
        try:
            if "json" not in members:
                raise ValueError("it has no json")
            record = decode_record(members["json"])
        except ValueError as error:
            raise ValueError(damage(path, f"sample {key}: {error}")) from None
        yield record, members


def read_records(path: Path, samples: int | None = None) -> list[Record]:
    """Return what is said of every sample of a shard; see `index_shard`."""
    return [record for record, _ in read_samples(path, samples, "json")]
