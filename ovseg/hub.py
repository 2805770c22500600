"""The Hugging Face Hub: what names a repository there, and how a few of its files come here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def is_hub_id(source: str | Path) -> bool:
    """Say whether a text has the form "owner/name"; a `Path` is always a path."""
    return isinstance(source, str) and bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source))


def hub_folder(
    repo: str,
    needed: Sequence[str],
    wanted: Sequence[str] = (),
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return a folder with some files of one commit of a repository, downloaded if need be.

    Args:
        repo: A Hub id.
        needed: Names of files that must be there.
        wanted: Names of files that may be there.
        revision: Commit, branch or tag.
        local_files_only: Never ask the Hub; use what has been downloaded before.

    Raises:
        FileNotFoundError: If a needed file is neither in the cache nor on the Hub.
    """
    from huggingface_hub import snapshot_download

    options = {"revision": revision, "local_files_only": local_files_only}
    with _asking(repo, needed, local_files_only):
        folder = snapshot_download(repo, allow_patterns=[*needed, *wanted], **options)
        if lacking := [name for name in needed if not Path(folder, name).is_file()]:
            raise FileNotFoundError(f"the repository has no {' and '.join(lacking)}")
    return Path(folder)


def hub_file(
    repo: str, name: str, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """Return one file of a repository; arguments and errors are those of `hub_folder`."""
    from huggingface_hub import hf_hub_download

    options = {"revision": revision, "local_files_only": local_files_only}
    with _asking(repo, [name], local_files_only):
        return Path(hf_hub_download(repo, name, **options))


@contextmanager
def _asking(repo: str, needed: Sequence[str], local_files_only: bool) -> Iterator[None]:
    """Turn whatever goes wrong into one line that says what was looked for, and where.

    The client's own lines, one for each time it tries again, are left out.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, HTTPError
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError, EntryNotFoundError, HTTPError) as error:
        why = f"({constants.ENDPOINT}): {reason(error)}"
        raise FileNotFoundError(
            f"cannot find {' and '.join(needed)} of {repo!r}: no folder {Path(repo).absolute()}, "
            f"not all in the cache {constants.HF_HUB_CACHE}; the Hub "
            f"{'was not to be asked' if local_files_only else why}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def reason(error: Exception) -> str:
    """Say in one line why huggingface_hub found nothing."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    kinds = {
        GatedRepoError: "the repository is gated: ask for access there, then `hf auth login`",
        RepositoryNotFoundError: "there is no such repository, or it is private (`hf auth login`)",
        RevisionNotFoundError: "the repository has no such revision",
    }
    known = (text for kind, text in kinds.items() if isinstance(error, kind))
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return next(known, first.removeprefix("Got: "))
