"""ovseg.hub: names of repositories, and a few of their files."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_hub import http_error
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ovseg.hub import hub_file, hub_folder, is_hub_id, reason

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name", True),
        ("owner-1/a_name.v2", True),
        ("clipart", False),
        ("a/b/c", False),
        ("/owner/name", False),
        ("owner/name/", False),
        ("./name", False),
        ("../name", False),
        ("~/name", False),
        (Path("owner/name"), False),
    ],
)
def test_what_is_a_hub_id(source, expected):
    assert is_hub_id(source) is expected


def test_only_the_named_files_come(hub):
    repo = hub.remote / "owner" / "name"
    repo.mkdir(parents=True)
    for name in ("a.json", "b.json", "weights.bin"):
        (repo / name).write_text(name)
    folder = hub_folder("owner/name", ["a.json"], ["b.json", "c.json"], revision="v1")
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.json"]
    assert hub.asked[0]["revision"] == "v1" and hub.asked[0]["local_files_only"] is False
    with pytest.raises(FileNotFoundError, match="no folder .*: the repository has no c.json$"):
        hub_folder("owner/name", ["a.json", "c.json"])


def test_from_the_cache_of_huggingface_hub(tmp_path, monkeypatch):
    repo = tmp_path / "models--owner--name"
    (repo / "snapshots" / COMMIT).mkdir(parents=True)
    (repo / "snapshots" / COMMIT / "a.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for revision in (None, "main", COMMIT):
        folder = hub_folder("owner/name", ["a.json"], revision=revision, local_files_only=True)
        assert folder == repo / "snapshots" / COMMIT
        assert hub_file("owner/name", "a.json", revision, True) == folder / "a.json"
    with pytest.raises(FileNotFoundError, match="not all in the cache .* was not to be asked"):
        hub_folder("owner/name", ["a.json", "b.st"], local_files_only=True)
    with pytest.raises(FileNotFoundError, match="cannot find b.st of 'owner/name': no folder"):
        hub_file("owner/name", "b.st", local_files_only=True)
    with pytest.raises(FileNotFoundError) as caught:
        hub_folder("owner/other", ["a.json", "b.st"], local_files_only=True)
    assert str(caught.value) == (
        f"cannot find a.json and b.st of 'owner/other': no folder {Path.cwd() / 'owner/other'}, "
        f"not all in the cache {tmp_path}; the Hub was not to be asked"
    )


def test_an_absent_repository(hub):
    with pytest.raises(FileNotFoundError) as caught:
        hub_folder("owner/name", ["a.json"])
    text = str(caught.value)
    assert text.endswith(
        f"not all in the cache {constants.HF_HUB_CACHE}; the Hub ({constants.ENDPOINT}): there is "
        "no such repository, or it is private (`hf auth login`)"
    )
    assert "\n" not in text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (http_error(GatedRepoError, "x"), "the repository is gated: ask for access there"),
        (http_error(RepositoryNotFoundError, "x"), "there is no such repository, or it is private"),
        (http_error(RevisionNotFoundError, "x"), "the repository has no such revision"),
        (LocalEntryNotFoundError("Got: ConnectError: no route\nAn error"), "ConnectError: no"),
        (OSError(""), "OSError"),
    ],
)
def test_reasons_are_one_line(error, line):
    assert reason(error).startswith(line) and "\n" not in reason(error)


def test_an_unreachable_hub(monkeypatch, capfd):
    import huggingface_hub
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import logging

    def fail(*args, **options):
        logging.get_logger("huggingface_hub.utils").warning("Retrying in 1s [Retry 1/5].")
        raise HTTPError("502 of the proxy")

    before = logging.get_verbosity()
    for function, files in (("snapshot_download", ["a.json"]), ("hf_hub_download", "a.json")):
        monkeypatch.setattr(huggingface_hub, function, fail)
        ask = hub_folder if function == "snapshot_download" else hub_file
        with pytest.raises(FileNotFoundError, match=r"the Hub \(https://.*\): 502 of the proxy$"):
            ask("owner/name", files)
    assert "Retrying" not in capfd.readouterr().err and logging.get_verbosity() == before
