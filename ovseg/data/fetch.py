"""Files behind URLs, through fsspec: whole, checked, and asked for again if that fails."""

from __future__ import annotations

import os
import re
import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from ovseg.data.shard_file import sha256_of

Result = TypeVar("Result")

WAITS = (1.0, 4.0, 16.0)
"""Seconds before a file is asked for again."""

WEB = ("http://", "https://")

SILENCE = 60
"""Seconds after which a web server that sends nothing is given up."""


def is_url(path: str) -> bool:
    """Say whether a text begins with a scheme, as ``s3://bucket/dataset`` does."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path))


def local_path(text: str | Path) -> Path:
    """Return a path; the type of a command line's argument that cannot be a URL.

    Raises:
        ArgumentTypeError: If it is one.
    """
    if is_url(str(text)):
        raise ArgumentTypeError(
            f"{text} is a URL, which `fit`, `validate` and `test` read: copy the dataset to this "
            "disk and give its folder"
        )
    return Path(text)


def fetch_bytes(url: str) -> bytes:
    """Return the content of a small file.

    Raises:
        FileNotFoundError: If there is none.
        ImportError: If the kind of URL takes a package that is not installed.
        OSError: If it cannot be fetched.
        ValueError: If the kind of URL is unknown.
    """
    return _patiently(url, lambda system, path: system.cat_file(path))


def fetch_file(url: str, path: Path, size: int, sha256: str) -> None:
    """Copy a file; it gets its name when its bytes are the right ones.

    Args:
        url: Of the file.
        path: Where to.
        size: Bytes that it must have.
        sha256: Of these bytes, in hex.

    Raises:
        FileNotFoundError, ImportError, OSError, ValueError: See `fetch_bytes`.
    """
    partial = path.with_name(f"{path.name}.tmp")

    def copy(system: AbstractFileSystem, remote: str) -> None:
        system.get_file(remote, str(partial))
        _compare(partial, size, sha256)

    try:
        _patiently(url, copy)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def split_query(url: str) -> tuple[str, str]:
    """Return a web address without its query, and the query with its question mark, or none."""
    place, mark, query = url.partition("?")
    return (place, mark + query) if place.startswith(WEB) else (url, "")


def _patiently(url: str, action: Callable[[AbstractFileSystem, str], Result]) -> Result:
    """Call an action with a URL's file system and path there, again if it fails.

    Errors leave out the query of a web address, which may hold a signature.
    """
    shown, query = split_query(url)
    for attempt in count(1):
        system, path = _open(url)
        try:
            return action(system, path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no {shown}") from error
        except Exception as error:  # every file system has errors of its own
            if attempt > len(WAITS):
                what = " ".join(str(error).split()) or type(error).__name__
                what = what.replace(query, "?...") if query else what
                raise OSError(f"cannot fetch {shown} in {attempt} attempts: {what}") from error
            time.sleep(WAITS[attempt - 1])


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a URL, made anew in a forked process, and the path there."""
    scheme = url.partition("://")[0]
    try:
        return url_to_fs(url, **_options(url))
    except ImportError as error:
        raise ImportError(f"cannot fetch {url}: {error}") from error
    except ValueError as error:
        raise ValueError(f"cannot fetch {url}: fsspec knows no {scheme}:// ({error})") from error


def _options(url: str) -> dict[str, Any]:
    if not url.startswith(WEB):
        return {}
    from aiohttp import ClientTimeout

    # by default a file may take five minutes, however fast it comes
    options = {"client_kwargs": {"timeout": ClientTimeout(None, None, SILENCE, SILENCE)}}
    return {**options, "encoded": bool(split_query(url)[1])}  # a signature is sent as it stands


def _compare(path: Path, size: int, sha256: str) -> None:
    """Refuse a file that is not the recorded one; make sure that it is on disk."""
    found = sha256_of(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    if path.stat().st_size != size:
        raise OSError(f"it has {path.stat().st_size} bytes, dataset.json says {size}")
    if found != sha256:
        raise OSError(f"its SHA-256 is {found}, dataset.json says {sha256}")
