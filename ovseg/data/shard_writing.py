"""Writing a shard so that its final name means that it is done."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from webdataset import TarWriter

from ovseg.data.shard_file import REJECTED, shard_name, shard_number
from ovseg.data.shard_format import Record
from ovseg.data.yields import Yield

Rejected = Literal["drop", "apart"]
"""What becomes of a rejected sample: its JSON alone is stored, or all of it."""

LOCK = ".lock"
"""The file by which a process holds a dataset's folder for a moment."""


class Held(ValueError):
    """Another process is writing the file."""


class ShardFile:
    """A tar that gets its name when it is complete; until then it is locked and ends in ``.tmp``.

    The system lets go of the lock when the process ends, however it ends.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f"{path.name}.tmp")
        self.file = _open_locked(self.temporary)
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

    That file gets its name first, so a shard under its final name has its rejects. The shard's own
    is locked first and let go last, so who holds it holds both.

    Args:
        folder: Of the dataset.
        number: Of the shard.
        rejected: What becomes of rejected samples; None if there is no filter.

    Attributes:
        number: Of the shard.
        counted: What of it was kept and rejected so far.

    Raises:
        Held: If another process is writing it.
    """

    def __init__(self, folder: Path, number: int, rejected: Rejected | None = None) -> None:
        self.number, self.whole, self.counted = number, rejected == "apart", Yield()
        self.files = [ShardFile(folder / shard_name(number))]
        if rejected is not None:
            (folder / REJECTED).mkdir(exist_ok=True)
            self.files.append(ShardFile(folder / REJECTED / shard_name(number)))

    def write(self, members: dict[str, str | bytes], record: Record) -> None:
        """Append a sample to one of the files.

        Args:
            members: What stands in the tar.
            record: What its JSON says.
        """
        if not (record.kept or self.whole):
            members = {name: members[name] for name in ("__key__", "json")}
        self.files[0 if record.kept else 1].write(members)
        self.counted += Yield.of([record])

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
        while self.files:
            self.files[-1].drop()
            self.files.pop()


@contextmanager
def telling_where(path: Path) -> Iterator[None]:
    """Say which file of a dataset could not be written, and what to do.

    Raises:
        OSError: If the disk is full, or the folder is gone.
    """
    try:
        yield
    except OSError as error:
        raise type(error)(
            error.errno,
            f"cannot write {path} ({error.strerror}); what was finished is kept: mend that and run "
            "the same command again",
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a dataset's folder for a moment; waits while another process does.

    Raises:
        OSError: If the folder cannot be written, or its file system has no locks.
    """
    with _open_locked(folder / LOCK, wait=True):
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def held_shards(folder: Path) -> set[int]:
    """Return the numbers of the shards that living processes hold; to be asked under `locked`."""
    held = set()
    for path in folder.glob("shard-*.tar.tmp"):
        with suppress(FileNotFoundError), path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.add(shard_number(path))
    return held


def is_locked(path: Path) -> bool:
    """Return whether a process is writing a file, without touching the lock.

    Processes of other machines are seen where the file system makes an flock a record lock of the
    whole file, as NFS does.
    """
    node = str(path.stat().st_ino)
    table = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    # "1: FLOCK  ADVISORY  WRITE 31744 fe:00:3385523 0 EOF"
    return any(line.split()[-3].split(":")[-1] == node for line in table) or _elsewhere(path)


def _elsewhere(path: Path) -> bool:
    """Return whether somebody holds a record lock of a file, on any machine that shares it."""
    layout = "hhqqi4x"  # struct flock: type, whence, start, length (0: all), process
    asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with path.open("rb") as file:
        answer = fcntl.fcntl(file, fcntl.F_GETLK, asked)
    return struct.unpack(layout, answer)[0] != fcntl.F_UNLCK


def _open_locked(path: Path, wait: bool = False) -> BinaryIO:
    """Open an empty file that no other process has open in this way.

    Args:
        path: The file.
        wait: Whether to wait for another process.

    Raises:
        Held: If another process has it, and is not waited for.
        OSError: If it cannot be written, or the file system has no locks.
    """
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            raise Held(
                f"another process is writing {path}: let it end, or choose another output"
            ) from None
        except OSError as error:
            file.close()
            raise OSError(error.errno, f"{error.strerror}: its file system has no flock") from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.seek(0)
                return file
        file.close()  # it was given its name, or removed, in between
