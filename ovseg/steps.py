"""Run a chain of commands, one child process each, that survives being killed at any point.

A folder's `steps/` holds one JSON per command: the digest of what it was started with, the seconds
that it has run, and whether it is done. A command that is done with the same digest is not run
again; one that was killed is run again and resumes by its own means (shards that exist, the last
checkpoint); one whose digest differs has its results removed first, as have all that follow it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import ovseg

HEARTBEAT = 2.0
"""Seconds between two records of how long a command has run."""

PATIENCE = 10.0
"""Seconds that an interrupted command has to end by itself."""


@dataclass(frozen=True)
class Step:
    """One command ``ovseg VERB ...`` of the chain.

    Attributes:
        name: Unique; also the folder of its results below the chain's folder.
        title: What it does, for people.
        stage: Under which name its seconds are summed.
        arguments: Verb and arguments.
        configs: Files that the arguments name and whose content decides the result.
        after: Name of the earlier step whose results it uses; the one just before it by default.
    """

    name: str
    title: str
    stage: str
    arguments: tuple[str, ...]
    configs: tuple[Path, ...] = ()
    after: str = ""

    def digest(self, before: str, folder: Path) -> str:
        """Hex digest of the command, its configs, and the step that it follows, wherever they lie.

        Below the folder, that is: its absolute path is taken out of them.
        """
        place = str(folder.absolute())
        content = [path.read_text(encoding="utf-8").replace(place, "") for path in self.configs]
        arguments = [argument.replace(place, "") for argument in self.arguments]
        facts = [ovseg.__version__, before, self.name, arguments, content]
        text = json.dumps(facts, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class StepFailed(Exception):
    """A child process ended with an error.

    Attributes:
        code: Its exit code.
    """

    def __init__(self, step: Step, code: int):
        super().__init__(
            f"{step.title} ended with exit code {code}; the reason stands above. "
            "The same command goes on from here"
        )
        self.code = code


def run_steps(
    folder: Path, steps: Sequence[Step], environment: dict[str, str], lock: int | None = None
) -> None:
    """Run what is not done yet, in order.

    Args:
        folder: Folder of all results.
        steps: The chain; a step may use the results of those before it.
        environment: Variables added to the children's environment.
        lock: What `locked` gave, if the folder is held already.

    Raises:
        StepFailed: If a command fails; what was done stays done.
    """
    digest, digests = "", {}
    with locked(folder) if lock is None else nullcontext(lock) as lock:
        for number, step in enumerate(steps, start=1):
            digest = step.digest(digests[step.after] if step.after else digest, folder)
            digests[step.name] = digest
            record = _load(folder, step)
            if record and record["digest"] != digest:
                shutil.rmtree(folder / step.name, ignore_errors=True)
                record = None
            head = f"[{number}/{len(steps)}] {step.title}"
            if record and record["done"]:
                print(f"{head}: done", flush=True)
                continue
            print(f"{head}\n      ovseg {shlex.join(step.arguments)}", flush=True)
            _run(folder, step, digest, record["seconds"] if record else 0.0, environment, lock)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a folder and give the lock; waits while another process, or a child it left, does."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for a process that still works in {folder} ...", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def seconds(folder: Path) -> dict[str, float]:
    """Return seconds per stage and their sum, resumed runs included.

    Raises:
        FileNotFoundError: If no chain was run in the folder.
    """
    records = [json.loads(p.read_text()) for p in sorted((folder / "steps").glob("*.json"))]
    if not records:
        raise FileNotFoundError(f"no chain of commands was run in {folder}")
    totals: dict[str, float] = {}
    for record in sorted(records, key=lambda record: record["started"]):
        totals[record["stage"]] = totals.get(record["stage"], 0.0) + record["seconds"]
    rounded = {stage: round(value, 1) for stage, value in totals.items()}
    return {**rounded, "total": round(sum(totals.values()), 1)}


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a folder; one cut off by a kill does not count."""
    found = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in found if zipfile.is_zipfile(path)), None)


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        with suppress(OSError):  # a name that cannot be is not there either
            partial.unlink()


def partial_of(path: Path) -> Path:
    """Return where this process writes a small file before it gets its name."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _run(
    folder: Path, step: Step, digest: str, before: float, environment: dict[str, str], lock: int
) -> None:
    """Run one command, recording its time as it goes."""
    arguments = list(step.arguments)
    checkpoint = last_checkpoint(folder / step.name / "checkpoints")
    if arguments[0] == "fit" and checkpoint:
        arguments += ["--ckpt_path", str(checkpoint)]
    started = time.monotonic()
    # the lock travels along: a child that outlives a killed parent keeps the folder
    child = subprocess.Popen(
        [sys.executable, "-m", "ovseg", *arguments],
        env={**os.environ, **environment},
        pass_fds=[lock],
        process_group=0,  # so that the processes which it starts can be ended with it
    )
    record = {"stage": step.stage, "digest": digest, "started": time.time(), "done": False}
    code = None
    try:
        while code is None:
            spent = before + time.monotonic() - started
            _save(folder, step, {**record, "seconds": spent})
            try:
                code = child.wait(HEARTBEAT)
            except subprocess.TimeoutExpired:
                pass
    finally:
        _end(child, interrupted=code is None)
    spent = before + time.monotonic() - started
    _save(folder, step, {**record, "seconds": spent, "done": code == 0})
    if code:
        raise StepFailed(step, code)


def _end(child: subprocess.Popen, interrupted: bool) -> None:
    """End what is left of a child and its processes; they have some seconds to finish a batch."""
    with suppress(ProcessLookupError):  # none is left
        if interrupted:
            os.killpg(child.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(PATIENCE)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _record_path(folder: Path, step: Step) -> Path:
    return folder / "steps" / f"{step.name.replace('/', '.')}.json"


def _load(folder: Path, step: Step) -> dict | None:
    path = _record_path(folder, step)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _save(folder: Path, step: Step, record: dict) -> None:
    write_text(_record_path(folder, step), json.dumps(record))
