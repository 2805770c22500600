"""Writing a shard so that its final name means that it is done."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from webdataset import TarWriter

from ovseg.data.shard_file import REJECTED, shard_name

Rejected = Literal["drop", "apart"]
"""What becomes of a rejected sample: its JSON alone is stored, or all of it."""


class ShardFile:
    """A tar that gets its name when it is complete; until then it is locked and ends in ``.tmp``.

    The system lets go of the lock when the process ends, however it ends.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f"{path.name}.tmp")
        self.file = _locked(self.temporary)
        self.tar = TarWriter(self.file, encoder=False, mtime=0)
        self.write = self.tar.write

    def publish(self) -> None:
        """Make sure that the tar is on disk, and give it its name."""
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.temporary, self.path)
        self.file.close()

    def drop(self) -> None:
        """Remove what was written."""
        self.temporary.unlink(missing_ok=True)
        with open(os.devnull, "wb") as nowhere:  # what is buffered may not fit on the disk
            os.dup2(nowhere.fileno(), self.file.fileno())
        self.tar.close()
        self.file.close()


class Shard:
    """A shard being written, and beside it the file of what was rejected.

    That file gets its name first, so a shard under its final name has its rejects.

    Args:
        folder: Of the dataset.
        number: Of the shard.
        rejected: What becomes of rejected samples; None if there is no filter.
    """

    def __init__(self, folder: Path, number: int, rejected: Rejected | None = None) -> None:
        self.whole = rejected == "apart"
        self.files = [ShardFile(folder / shard_name(number))]
        if rejected is not None:
            (folder / REJECTED).mkdir(exist_ok=True)
            self.files.append(ShardFile(folder / REJECTED / shard_name(number)))

    def write(self, members: dict[str, str | bytes], kept: bool) -> None:
        """Append a sample to one of the files."""
        if not (kept or self.whole):
            members = {name: members[name] for name in ("__key__", "json")}
        self.files[0 if kept else 1].write(members)

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        """Publish it; remove it if something failed."""
        try:
            if kind is None:
                self.publish()
        finally:
            self.drop()

    def publish(self) -> None:
        """Give the files their names."""
        while self.files:
            self.files[-1].publish()
            self.files.pop()

    def drop(self) -> None:
        """Remove what has no name yet."""
        for file in self.files:
            file.drop()


@contextmanager
def telling_where(folder: Path, number: int) -> Iterator[None]:
    """Say which shard could not be written, and what to do.

    Raises:
        OSError: If the disk is full, or the folder is gone.
    """
    try:
        yield
    except OSError as error:
        raise type(error)(
            error.errno,
            f"cannot write {folder / shard_name(number)} ({error.strerror}); what was finished is "
            "kept: mend that and run the same command again",
        ) from error


def is_locked(path: Path) -> bool:
    """Return whether a process of this machine is writing a file."""
    node = str(path.stat().st_ino)
    table = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    # "1: FLOCK  ADVISORY  WRITE 31744 fe:00:3385523 0 EOF"
    return any(line.split()[-3].split(":")[-1] == node for line in table)


def _locked(path: Path) -> BinaryIO:
    """Open an empty file that no other process has open in this way."""
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(
                f"another process is writing {path}: let it end, or choose another output"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.seek(0)
                return file
        file.close()  # it was given its name in between
