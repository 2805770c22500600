"""`ovseg refilter` of datasets that are damaged or lack something: one line, nothing written."""

import json
import shutil

import pytest
import yaml
from test_refilter import write
from toy_data import contents

from ovseg.__main__ import main
from ovseg.data.shard_file import read_members, sha256_of


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """Ten samples, some of them rejected and kept apart."""
    return write(tmp_path_factory.mktemp("strict"), {"min_area": 0.35})


@pytest.fixture
def copy(strict, tmp_path):
    return shutil.copytree(strict, tmp_path / "set")


@pytest.fixture
def line(tmp_path, capfd):
    """Return the one line that a failing refilter into `tmp_path / "new"` prints."""

    def fails(folder, *flags):
        capfd.readouterr()
        assert main(["refilter", str(folder), "--out", str(tmp_path / "new"), *flags]) == 2
        error = capfd.readouterr().err
        assert "Traceback" not in error and error.count("ovseg refilter: ") == 1
        found = error[error.index("ovseg refilter: ") :]
        assert found.count("\n") == 1
        return found

    return fails


def overwrite(path, member, size=50):
    """Change bytes inside a member, the size of the file stays."""
    data = path.read_bytes()
    place = data.index(member.encode()) + 512 + 100
    path.write_bytes(data[:place] + bytes(size) + data[place + size :])


@pytest.mark.parametrize("part", [".", "rejected"])
def test_a_shard_of_other_bytes_is_refused(copy, tmp_path, line, part):
    path = copy / part / "shard-000001.tar"
    size = path.stat().st_size
    overwrite(path, "image.png")
    assert path.stat().st_size == size and list(read_members(path))
    error = line(copy)
    assert f"shard {path} is damaged" in error and "its SHA-256 is" in error
    new = contents(tmp_path / "new")
    assert "shard-000001.tar" not in new and "dataset.json" not in new


def facts_of(folder):
    return json.loads((folder / "dataset.json").read_text())


def test_rejects_that_are_gone_are_counted(copy, tmp_path, capfd):
    before = facts_of(copy)
    kept, rejected = before["counts"]["samples"], before["yield"]["rejected"]
    left = before["rejected_shards"]["shard-000000.tar"]["samples"]
    assert kept + rejected == 10 and 0 < left < rejected
    for number in (1, 2):
        (copy / "rejected" / f"shard-00000{number}.tar").unlink()
    new, gone = tmp_path / "new", rejected - left
    assert main(["refilter", str(copy), "--out", str(new)]) == 0
    printed = capfd.readouterr().out
    assert f"{gone} rejected samples of {copy} are gone and were not judged\n" in printed
    assert f"{kept + left} of 10 samples kept" in printed
    after = facts_of(new)
    assert after["counts"]["samples"] == after["yield"]["kept"] == kept + left
    assert after["yield"]["rejected"] == gone and after["yield"]["reasons"] == {"gone": gone}
    assert sum(after["source"]["gone"].values()) == gone and after["size"] == 10
    assert main(["status", str(new)]) == 0
    assert f"{kept + left} of 10 samples kept" in capfd.readouterr().out
    # they are still gone for whoever filters the new one
    assert main(["refilter", str(new), "--out", str(tmp_path / "newer")]) == 0
    assert f"{gone} rejected samples of {new} are gone" in capfd.readouterr().out
    newer = facts_of(tmp_path / "newer")
    assert newer["yield"] == after["yield"] and newer["shards"] == after["shards"]


def test_nothing_is_said_of_rejects_that_are_there(copy, tmp_path, capfd):
    assert main(["refilter", str(copy), "--out", str(tmp_path / "new")]) == 0
    assert "gone" not in capfd.readouterr().out
    assert "gone" not in facts_of(tmp_path / "new")["source"]


def test_a_renamed_field_is_one_line(copy, line, capfd):
    path = copy / "shard-000000.tar"
    data, manifest = path.read_bytes(), facts_of(copy)
    place = data.index(b'"prompt"')
    path.write_bytes(data[:place] + b'"promqt"' + data[place + 8 :])
    manifest["shards"][path.name]["sha256"] = sha256_of(path)
    (copy / "dataset.json").write_text(json.dumps(manifest))
    why = f"shard {path} is damaged: delete it and run `predict` again, which makes only what is "
    assert why in (error := line(copy)) and ": it has no field 'prompt')" in error
    assert main(["status", str(copy)]) == 2
    error = capfd.readouterr().err
    assert why in error and ": it has no field 'prompt')" in error and error.count("\n") == 1


@pytest.mark.parametrize("bound", ["min_agreement", "min_clip"])
def test_a_filter_of_facts_that_are_not_stored_writes_nothing(copy, tmp_path, line, bound):
    error = line(copy, "--filter", "QualityFilter", f"--filter.{bound}", "0.5")
    assert f"{bound} needs" in error and not (tmp_path / "new").exists()


def test_the_dataset_itself_is_no_output(copy, line):
    before = contents(copy)
    (copy.parent / "new").symlink_to(copy)
    error = line(copy, "--threshold", "0.4")
    assert "give another --out than the dataset" in error and len(error) < 100 + len(str(copy))
    assert contents(copy) == before


def test_the_config_has_a_short_flag(copy, tmp_path):
    judge = {"class_path": "ovseg.quality.QualityFilter", "init_args": {"min_area": 0.5}}
    (tmp_path / "filter.yaml").write_text(yaml.safe_dump({"filter": judge, "rejected": "apart"}))
    for flag in ("-c", "--config"):
        out = ["--out", str(tmp_path / flag), flag, str(tmp_path / "filter.yaml")]
        assert main(["refilter", str(copy), *out]) == 0
    assert contents(tmp_path / "-c") == contents(tmp_path / "--config")
    assert facts_of(tmp_path / "-c")["filter"]["min_area"] == 0.5
