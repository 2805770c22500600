"""``ovseg export``: what it refuses, what a kill or a full disk leaves."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from exported import ODD, export, vocabulary_of, write_samples
from toy_data import contents, data_module, live_stream, write_dataset

from ovseg.__main__ import main


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "data"
    write_samples(folder, "voc")
    return folder


def one_line(capsys) -> str:
    """Return the line of an error, without the progress bar that may stand before it."""
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.count("ovseg export: ") == 1
    line = error[error.index("ovseg export: ") :]
    assert line.count("\n") == 1
    return line


def test_what_predict_writes_is_exported_the_same_way_twice(tmp_path):
    data = data_module(predict={"data": live_stream()})
    folder = write_dataset(tmp_path / "my data", data)
    for name in ("a b", "c"):
        assert export(folder, tmp_path / name, "voc") == 0
    one, other = contents(tmp_path / "a b"), contents(tmp_path / "c")
    assert one == other and len(one) == 2 * 10 + 3
    assert export(folder, tmp_path / "d", "ade") == 0
    for files in (one, contents(tmp_path / "d")):
        assert {Path(n).stem for n in files if "0000" in n} == {f"{n:08d}" for n in range(10)}


def test_the_record_names_classes_and_holds_no_path(tmp_path):
    path, out = vocabulary_of(tmp_path), tmp_path / "out"
    write_samples(tmp_path / "data", path)
    assert export(tmp_path / "data", out, "ade", "--vocabulary", path) == 0
    text = (out / "export.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert record["classes"] == record["names"] == ["background", *ODD]
    assert str(tmp_path) not in text
    assert (record["format"], record["val_share"]) == ("ade", 0.3)


def test_a_finished_export_is_left_as_it_is(dataset, tmp_path, capsys):
    assert export(dataset, tmp_path / "out", "ade") == 0
    before = (tmp_path / "out" / "export.json").stat().st_mtime_ns
    assert export(dataset, tmp_path / "out", "ade") == 0
    assert "10 samples to train with, 2 to validate" in capsys.readouterr().out
    assert (tmp_path / "out" / "export.json").stat().st_mtime_ns == before


def test_other_exports_and_other_files_are_refused(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(dataset, out, "ade") == 0
    before = contents(out)
    capsys.readouterr()
    assert export(dataset, out, "voc") == 2
    assert "holds another export (format is 'ade' there, 'voc' here)" in one_line(capsys)
    assert export(dataset, out, "ade", "--val-share", "0.2") == 2
    assert "val_share is 0.3 there, 0.2 here" in one_line(capsys)
    write_samples(tmp_path / "other", "voc", count=11)
    assert export(tmp_path / "other", out, "ade") == 2
    assert "dataset.shards_digest is" in one_line(capsys)
    assert contents(out) == before
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", dataset):
        assert export(dataset, place, "ade") == 2
        assert "is not empty and holds no export" in one_line(capsys)


def test_an_empty_folder_is_taken_but_not_the_working_directory(
    dataset, tmp_path, monkeypatch, capsys
):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert export(dataset, Path("."), "ade") == 2
    assert "choose a folder inside of it" in one_line(capsys)
    monkeypatch.chdir(tmp_path)
    assert export(dataset, Path("out"), "ade") == 0
    assert (tmp_path / "out" / "export.json").is_file()


KILLED = """
import os, signal, sys
from ovseg.__main__ import main
from ovseg.export.ade import ADE
add = ADE.add
def killed(self, item):
    add(self, item)
    if item.key == "00000004":
        os.kill(os.getpid(), signal.SIGKILL)
ADE.add = killed
main(sys.argv[1:])
"""


def test_a_killed_export_looks_unfinished_and_starts_again(dataset, tmp_path):
    out = tmp_path / "out"
    command = ["export", str(dataset), "--format", "ade", "--out", str(out)]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()]))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *command],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == -9, done.stderr
    assert not out.exists()
    partial = tmp_path / ".out.partial"
    assert len(contents(partial)) == 2 * 5
    (partial / "left.txt").touch()
    assert main(command) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(contents(out)) == 2 * 12 + 1


def test_a_full_disk_leaves_nothing_and_says_so(dataset, tmp_path, monkeypatch, capsys):
    write, room = Path.write_bytes, [7]

    def full(self, data):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert export(dataset, tmp_path / "out", "ade") == 2
    line = one_line(capsys)
    assert "No space left on device" in line and "nothing is left of it" in line
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert export(dataset, tmp_path / "out", "ade") == 0


def test_a_folder_that_cannot_be_made_is_one_line(dataset, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert export(dataset, tmp_path / "file" / "out", "ade") == 2
    assert "cannot export to" in one_line(capsys)


def test_an_export_that_another_process_makes_is_left_to_it(dataset, tmp_path, capsys):
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "half").touch()
    lock = os.open(partial, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert export(dataset, tmp_path / "out", "ade") == 2
    assert "another process is writing" in one_line(capsys)
    assert (partial / "half").exists()
    os.close(lock)
    assert export(dataset, tmp_path / "out", "ade") == 0


def test_wrong_arguments(dataset, tmp_path, capsys):
    write_samples(tmp_path / "odd", vocabulary_of(tmp_path))
    (tmp_path / "empty").mkdir()
    for folder, name, arguments, line in (
        (tmp_path / "none", "voc", [], "no dataset folder"),
        (tmp_path / "empty", "voc", [], "holds no shards"),
        (tmp_path / "odd", "voc", [], "--vocabulary: no vocabulary 'odd'"),
        (dataset, "voc", ["--vocabulary", "clipart"], "made with the classes of vocabulary 'voc'"),
        (dataset, "voc", ["--val-share", "1"], "--val-share must be in [0, 1), got 1.0"),
        (dataset, "voc", ["--push-to-hub", "a/b"], "--push-to-hub uploads --format hf, not voc"),
        (dataset, "hf", ["--push-to-hub", "a/b/c"], "a/b/c"),
    ):
        assert export(folder, tmp_path / "out", name, *arguments) == 2
        assert line in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "package"), [("coco", "pycocotools"), ("hf", "pyarrow")])
def test_a_missing_package_is_named(dataset, tmp_path, monkeypatch, capsys, name, package):
    monkeypatch.delitem(sys.modules, f"ovseg.export.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert export(dataset, tmp_path / "out", name) == 2
    assert f"--format {name} needs {package}: pip install {package}" in one_line(capsys)


def test_a_damaged_sample_leaves_nothing(tmp_path, capsys):
    write_samples(tmp_path / "data", "voc")
    shard = tmp_path / "data" / "shard-000001.tar"
    data = shard.read_bytes()
    place = data.index(b"IDAT") + 8
    shard.write_bytes(data[:place] + b"\0" * 20 + data[place + 20 :])
    assert export(tmp_path / "data", tmp_path / "out", "voc") == 2
    assert "sample 7 of shard" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("text", ["[]", "", "{", '{"format": "ade"}'])
def test_a_damaged_record_is_one_line(dataset, tmp_path, capsys, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text(text)
    assert export(dataset, tmp_path / "out", "ade") == 2
    assert f"{tmp_path / 'out' / 'export.json'} is no export.json (" in one_line(capsys)


@pytest.mark.parametrize("name", ["voc", "ade", "coco", "yolo", "hf"])
def test_a_finished_export_that_lacks_files_is_refused(dataset, tmp_path, capsys, name):
    out = tmp_path / "out"
    assert export(dataset, out, name) == 0
    (out / "more.cache").touch()
    assert export(dataset, out, name) == 0
    capsys.readouterr()
    gone = max(out.rglob("*"), key=lambda path: (path.is_file(), path.parent != out, path))
    beside = sum(path.is_file() for path in gone.parent.iterdir())
    gone.unlink()
    assert export(dataset, out, name) == 2
    place = gone.parent.relative_to(out).as_posix()
    assert f"lacks files of the export (1 of {beside} in {place}): delete" in one_line(capsys)
