"""Chains of commands: what is run, what is not run again, and what a kill leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from ovseg.steps import (
    Step,
    StepFailed,
    last_checkpoint,
    locked,
    partial_of,
    run_steps,
    seconds,
    write_text,
)

VERSION = Step("a", "print the version", "first", ("--version",))


def step(name, *arguments, **fields) -> Step:
    return Step(name, f"title of {name}", fields.pop("stage", name), arguments, **fields)


def run(folder, *steps):
    run_steps(folder, steps, {})


def test_a_done_step_is_not_run_again(tmp_path, capfd):
    run(tmp_path, VERSION)
    first = capfd.readouterr().out
    assert "[1/1] print the version" in first and "ovseg --version" in first and "0." in first
    run(tmp_path, VERSION)
    assert capfd.readouterr().out == "[1/1] print the version: done\n"


def test_a_changed_config_removes_results_and_runs_the_rest_again(tmp_path, capfd):
    config = tmp_path / "a.yaml"
    config.write_text("x: 1")
    steps = [replace(VERSION, configs=(config,)), step("b", "--version")]
    run(tmp_path, *steps)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "result").touch()
    config.write_text("x: 2")
    capfd.readouterr()
    run(tmp_path, *steps)
    assert "done" not in capfd.readouterr().out
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_step_is_run_again_only_if_what_it_follows_was(tmp_path, capfd):
    config = tmp_path / "b.yaml"
    config.write_text("x: 1")
    chain = [VERSION, step("b", "--version", configs=(config,)), step("c", "--version", after="a")]
    run(tmp_path, *chain)
    config.write_text("x: 2")
    capfd.readouterr()
    run(tmp_path, *chain)
    printed = capfd.readouterr().out
    assert printed.count(": done") == 2 and "title of c: done" in printed
    run(tmp_path, VERSION, chain[2])
    assert "[2/2] title of c: done" in capfd.readouterr().out


def test_the_digest_does_not_depend_on_the_place(tmp_path):
    digests = []
    for name in ("here", "there"):
        folder = tmp_path / name
        write_text(folder / "c.yaml", f"out: {folder}/x")
        one = step("a", "predict", "--config", f"{folder}/c.yaml", configs=(folder / "c.yaml",))
        digests.append(one.digest("before", folder))
    assert digests[0] == digests[1]
    assert one.digest("another", folder) != digests[0]
    assert replace(one, arguments=("fit",)).digest("before", folder) != digests[0]


def test_the_digest_does_not_depend_on_a_place_in_other_letters(tmp_path):
    digests = []
    for name in ("here", "wörk", 'a "b"'):
        folder = tmp_path / name
        write_text(folder / "c.yaml", f"out: {folder}/x")
        one = step("a", "predict", f"--out={folder}", configs=(folder / "c.yaml",))
        digests.append(one.digest("before", folder))
    assert len(set(digests)) == 1


def test_a_relative_folder_takes_nothing_else_out_of_the_digest(tmp_path):
    digests = []
    for text in ("lr: 0.5", "lr: 05"):
        write_text(tmp_path / "c.yaml", text)
        digests.append(step("a", "fit", configs=(tmp_path / "c.yaml",)).digest("", Path(".")))
    assert digests[0] != digests[1]


def test_a_failing_step_stops_the_chain(tmp_path, capfd):
    with pytest.raises(StepFailed, match="title of b ended with exit code 2") as caught:
        run(tmp_path, VERSION, step("b", "nonsense"), step("c", "--version"))
    assert caught.value.code == 2
    assert "no verb 'nonsense'" in capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["a.json", "b.json"]
    with pytest.raises(StepFailed):
        run(tmp_path, VERSION, step("b", "nonsense"))
    assert "print the version: done" in capfd.readouterr().out


def test_seconds_are_summed_per_stage_over_interruptions(tmp_path):
    for name, stage, spent, started in (
        ("x", "2", 5.0, 30.0),
        ("y", "1", 1.25, 10.0),
        ("z", "1", 2.0, 20.0),
    ):
        record = {"stage": stage, "seconds": spent, "started": started}
        write_text(tmp_path / "steps" / f"{name}.json", json.dumps(record))
    assert seconds(tmp_path) == {"1": 3.2, "2": 5.0, "total": 8.2}
    assert list(seconds(tmp_path)) == ["1", "2", "total"]
    with pytest.raises(FileNotFoundError, match="no chain of commands"):
        seconds(tmp_path / "empty")


def test_time_before_a_kill_counts(tmp_path):
    write_text(
        tmp_path / "steps" / "a.json",
        json.dumps(
            {
                "stage": "first",
                "digest": VERSION.digest("", tmp_path),
                "seconds": 100.0,
                "done": False,
                "started": 0.0,
            }
        ),
    )
    run(tmp_path, VERSION)
    assert 100 <= seconds(tmp_path)["first"] < 200


def test_last_checkpoint_skips_one_that_was_cut_off(tmp_path):
    assert last_checkpoint(tmp_path) is None
    with zipfile.ZipFile(tmp_path / "old.ckpt", "w") as archive:
        archive.writestr("data", "0123456789" * 100)
    whole = (tmp_path / "old.ckpt").read_bytes()
    (tmp_path / "new.ckpt").write_bytes(whole[:-30])
    os.utime(tmp_path / "old.ckpt", (1, 1))
    assert last_checkpoint(tmp_path).name == "old.ckpt"
    (tmp_path / "new.ckpt").write_bytes(whole)
    assert last_checkpoint(tmp_path).name == "new.ckpt"


def test_write_text_replaces_as_a_whole(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_text_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("folder", "x" * 300):
        with pytest.raises(OSError):
            write_text(tmp_path / name, "one")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_processes_write_a_file_under_names_of_their_own(tmp_path, monkeypatch):
    first = partial_of(tmp_path / "x.json")
    monkeypatch.setattr(os, "getpid", lambda: 12345)
    assert partial_of(tmp_path / "x.json").name == ".x.json.12345.tmp" != first.name


def test_a_folder_that_is_held_is_not_held_again(tmp_path):
    with locked(tmp_path) as lock:
        run_steps(tmp_path, [VERSION], {}, lock)
    assert json.loads((tmp_path / "steps" / "a.json").read_text())["done"]


SLOW = """
import signal, sys
from pathlib import Path
from ovseg.steps import Step, run_steps
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
folder = Path(sys.argv[1])
run_steps(folder, [Step("a", "slow", "a", ("slow", str(folder)))], {})
"""

SITE = """
import os, sys, time
if "slow" in sys.orig_argv:  # instead of running ovseg
    folder = sys.orig_argv[-1]
    with open(os.path.join(folder, "started"), "a") as file:
        file.write("x")
    time.sleep(0.1 if os.path.exists(os.path.join(folder, "quick")) else 60)
    os._exit(0)
"""


def start_chain(tmp_path) -> subprocess.Popen:
    """Start a chain of one command that takes a minute, or no time in a folder with "quick"."""
    (tmp_path / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", os.getcwd())])
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, timeout=60):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def test_an_interrupted_chain_ends_its_child(tmp_path):
    chain = start_chain(tmp_path)
    wait_for((tmp_path / "started").is_file)
    (child,) = children(chain.pid)
    chain.send_signal(signal.SIGTERM)
    chain.communicate(timeout=60)
    assert chain.returncode == 143
    assert not os.path.exists(f"/proc/{child}")


def test_a_killed_chain_s_child_keeps_the_folder_until_it_ends(tmp_path):
    first = start_chain(tmp_path)
    wait_for((tmp_path / "started").is_file)
    (child,) = children(first.pid)
    first.kill()
    first.wait()
    (tmp_path / "started").unlink()
    (tmp_path / "quick").touch()
    second = start_chain(tmp_path)
    assert second.stdout.readline().startswith("waiting for a process that still works in")
    assert not (tmp_path / "started").exists()
    os.kill(child, signal.SIGKILL)
    second.communicate(timeout=60)
    assert second.returncode == 0
    assert (tmp_path / "started").read_text() == "x"
    assert json.loads((tmp_path / "steps" / "a.json").read_text())["done"]
    first.communicate()
