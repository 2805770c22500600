"""The Hugging Face Hub: what names a repository there, and how a few of its files come here."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError

    def missing(why: str) -> FileNotFoundError:
        hub = "was not to be asked" if local_files_only else f"({constants.ENDPOINT}): {why}"
        return FileNotFoundError(
            f"cannot find {' and '.join(needed)} of {repo!r}: no folder {Path(repo).absolute()}, "
            f"not all in the cache {constants.HF_HUB_CACHE}; the Hub {hub}"
        )

    try:
        options = {"revision": revision, "local_files_only": local_files_only}
        folder = snapshot_download(repo, allow_patterns=[*needed, *wanted], **options)
    except (OSError, ValueError, EntryNotFoundError, HTTPError) as error:
        raise missing(reason(error)) from error
    if lacking := [name for name in needed if not Path(folder, name).is_file()]:
        raise missing(f"the repository has no {' and '.join(lacking)}")
    return Path(folder)


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
