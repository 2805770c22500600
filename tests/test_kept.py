"""ovseg.kept: what may be replaced, and how; what a configuration may hold is in test_folder."""

from __future__ import annotations

import json
import os

import pytest

from ovseg.kept import FILES, NEEDED, check_replaceable, replacing

KINDS = [("grounder", "segmenter"), ("segmenter", "grounder")]


def write(folder, what: str, note: str = "") -> None:
    """Write all files that the folder of a part may hold, by the way of every part."""
    check_replaceable(folder, what)
    with replacing(folder) as partial:
        for name in FILES:
            (partial / name).write_text(note)
        (partial / "config.json").write_text(json.dumps(dict.fromkeys(NEEDED[what], note)))


def contents(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", NEEDED)
def test_one_of_its_kind_is_replaced(tmp_path, what):
    (tmp_path / "out").mkdir()
    for note in ("first", "second"):
        write(tmp_path / "out", what, note)
        assert (tmp_path / "out" / "model.safetensors").read_text() == note
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("what", "other"), KINDS)
@pytest.mark.parametrize("config", ["", "[]", "{", '{"model_type": "mask2former"}', "other"])
def test_what_is_none_is_left_alone(tmp_path, what, other, config):
    write(tmp_path / "out", other)
    if config != "other":
        (tmp_path / "out" / "config.json").write_text(config)
    before = contents(tmp_path)
    for folder in (tmp_path / "out", tmp_path, tmp_path / "out" / "model.safetensors"):
        with pytest.raises(ValueError, match=f"{folder.name} exists and holds no {what}; give an"):
            write(folder, what)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", NEEDED)
def test_other_files_are_left_alone(tmp_path, what):
    write(tmp_path / "out", what)
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"holds more than a {what}, thesis.tex for one, which w"):
        write(tmp_path / "out", what)
    assert contents(tmp_path) == before
    (tmp_path / "out" / "thesis.tex").unlink()
    (tmp_path / "out" / "results.json").unlink()
    (tmp_path / "out" / "results.json").mkdir()
    with pytest.raises(ValueError, match="results.json for one"):
        write(tmp_path / "out", what)


def test_what_a_link_points_to_is_replaced(tmp_path):
    write(tmp_path / "real", "grounder")
    for name, target in (("link", "real"), ("dangling", "later/new")):
        (tmp_path / name).symlink_to(tmp_path / target)
        write(tmp_path / name, "grounder", "new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / target / "model.safetensors").read_text() == "new"
    names = ["dangling", "later", "link", "real"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [path.name for path in (tmp_path / "later").iterdir()] == ["new"]


def test_leftovers_of_a_killed_process_do_not_block(tmp_path):
    write(tmp_path / "out", "grounder")
    for kind in ("tmp", "old"):  # the first process in a container has the same number each time
        left = tmp_path / f".out.{os.getpid()}.{kind}"
        left.mkdir()
        (left / "model.safetensors").write_text("half")
    write(tmp_path / "out", "grounder", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_had_set_aside_comes_back(tmp_path):
    """It ended between taking the folder away and putting the new one there."""
    write(tmp_path / "out", "grounder")
    (tmp_path / "out").rename(tmp_path / f".out.{os.getpid()}.old")
    with pytest.raises(OSError, match="full"), replacing(tmp_path / "out"):
        raise OSError("the disk is full")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_clone_of_the_hub_is_replaced(tmp_path):
    write(tmp_path / "out", "grounder")
    (tmp_path / "out" / ".gitattributes").write_text("*.safetensors filter=lfs")
    (tmp_path / "out" / ".cache" / "huggingface").mkdir(parents=True)
    write(tmp_path / "out", "grounder", "new")
    assert (tmp_path / "out" / "model.safetensors").read_text() == "new"
