"""The folder's own files: counts, digests, what is refused."""

import hashlib
import json
import shutil
from collections import Counter

import pytest
from toy_data import data_module, live_stream, write_dataset

from ovseg.__main__ import main
from ovseg.data.contents import digest_of
from ovseg.data.manifest import differences, pending, prepare, read_manifest


def request(seed=0, threads=1):
    config = {"seed": seed, "size": 5, "shard_size": 2}
    return {"config": config, "environment": {"threads": threads}}


def prepared(folder, request):
    prepare(folder, request)
    return pending(folder, request["config"])


def test_dataset_json(tmp_path):
    data = data_module(predict={"data": live_stream()})
    write_dataset(tmp_path, data)
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    request = json.loads((tmp_path / "request.json").read_text())
    assert manifest["config_digest"] == digest_of(request["config"])
    assert {k: manifest[k] for k in request["config"]} == request["config"]
    assert manifest["backbone"]["model"] == "acme/toy"
    assert manifest["latents_digest"] == data.backbone.latents_digest
    assert manifest["timesteps"] == [1.0]
    vocabulary = data.vocabulary
    assert manifest["vocabulary"] == {
        "name": "clipart",
        "digest": vocabulary.digest,
        "words_digest": vocabulary.words_digest,
        "split": "1",
        "unseen": [vocabulary[i].key for i in vocabulary.unseen],
        "num_classes": 21,
        "keys": ["background", *(c.key for c in vocabulary.classes)],
    }
    assert manifest["requested_classes"] == list(range(1, 21))
    assert manifest["annotator"]["source"] == "acme colours"
    assert [shard["samples"] for shard in manifest["shards"].values()] == [4, 4, 2]
    for name, shard in manifest["shards"].items():
        written = (tmp_path / name).read_bytes()
        assert shard["bytes"] == len(written)
        assert shard["sha256"] == hashlib.sha256(written).hexdigest()


def test_counts(tmp_path):
    data = data_module(predict={"data": live_stream()})
    write_dataset(tmp_path, data)
    counts = json.loads((tmp_path / "dataset.json").read_text())["counts"]
    assert counts["samples"] == 10
    prompted, found, pairs, pairs_found = Counter(), Counter(), Counter(), Counter()
    for index in range(10):
        batch = data.predict["data"].complete(data.predict["data"][[index]], data.backbone)
        ids = [entity.class_id for entity in batch.requests[0].entities]
        flags = dict(zip(ids, batch.found[0].tolist(), strict=True))
        for class_id in ids:
            prompted[data.vocabulary[class_id].key] += 1
            found[data.vocabulary[class_id].key] += flags[class_id]
        if len(ids) == 2:
            key = " + ".join(data.vocabulary[class_id].key for class_id in sorted(ids))
            pairs[key] += 1
            pairs_found[key] += all(flags.values())
    assert sum(found.values()) < sum(prompted.values())
    expected = {k: {"prompted": prompted[k], "found": found[k]} for k in prompted}
    assert counts["classes"] == expected
    assert counts["pairs"] == {k: {"prompted": pairs[k], "found": pairs_found[k]} for k in pairs}


def test_prepare_lists_what_is_missing(tmp_path):
    folder = tmp_path / "new" / "set"
    assert prepared(folder, request()) == [0, 1, 2]
    (folder / "shard-000001.tar").write_bytes(b"done")
    (folder / "shard-000002.tar.tmp").write_bytes(b"half")
    assert prepared(folder, request()) == [0, 2]
    assert [p.name for p in folder.glob("*.tmp")] == ["shard-000002.tar.tmp"]  # maybe another's


def test_a_filtered_shard_is_done_with_its_rejects(tmp_path):
    asked = request()
    asked["config"]["rejected"] = "drop"
    (tmp_path / "shard-000001.tar").write_bytes(b"done")
    assert pending(tmp_path, asked["config"]) == [0, 1, 2]
    (tmp_path / "rejected").mkdir()
    (tmp_path / "rejected" / "shard-000001.tar").write_bytes(b"done")
    assert pending(tmp_path, asked["config"]) == [0, 2]


def test_prepare_refuses(tmp_path):
    prepare(tmp_path, request())
    prepare(tmp_path, request(seed=1))  # nothing was made yet: another choice is fine
    (tmp_path / "shard-000000.tar").write_bytes(b"done")
    with pytest.raises(ValueError, match="seed is 1 there, 0 here"):
        prepare(tmp_path, request())
    with pytest.raises(ValueError, match="threads is 1 there, 2 here"):
        prepare(tmp_path, request(seed=1, threads=2))
    for number in (1, 2):
        (tmp_path / f"shard-{number:06d}.tar").write_bytes(b"done")
    assert prepared(tmp_path, request(seed=1, threads=2)) == []  # complete: of use anywhere
    (tmp_path / "request.json").unlink()
    with pytest.raises(ValueError, match="holds shards but no request.json"):
        prepare(tmp_path, request())


@pytest.mark.parametrize("shards", [1, 3])
def test_older_datasets_recorded_where_a_backbone_lay(tmp_path, shards):
    def asked(own, more):
        return {"environment": {}, "config": config | {"backbone": {**more, "init_args": own}}}

    config, own = request()["config"], {"steps": 4, "offload": True, "local_files_only": True}
    prepare(tmp_path, asked(own, own))
    for number in range(shards):
        (tmp_path / f"shard-{number:06d}.tar").write_bytes(b"done")
    here = {"steps": 4}
    own = here | {"offload": False, "local_files_only": False}
    assert prepared(tmp_path, asked(own, here)) == list(range(shards, 3))
    with pytest.raises(ValueError, match=r"\(backbone.steps is 4 there, 5 here\)"):
        prepare(tmp_path, asked(own, {"steps": 5}))


def test_a_filter_cannot_be_added_to_what_was_begun_without(tmp_path):
    prepare(tmp_path, request())
    (tmp_path / "shard-000000.tar").write_bytes(b"done")
    filtered = request()
    filtered["config"]["rejected"] = "drop"
    with pytest.raises(ValueError, match="rejected is None there, 'drop' here"):
        prepare(tmp_path, filtered)


def test_every_difference_is_named_or_counted(tmp_path):
    prepare(tmp_path, request())
    (tmp_path / "shard-000000.tar").write_bytes(b"done")
    other = request(seed=1)
    other["config"] |= {"backbone": {f"k{n}": n for n in range(7)}}
    with pytest.raises(ValueError) as raised:
        prepare(tmp_path, other)
    assert "backbone is None there, {'k0': 0, 'k1': 1, 'k2': 2, " in str(raised.value)
    assert "seed is 0 there, 1 here" in str(raised.value)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(PermissionError, match="Operation not supported: its file system has no f"):
        prepare(tmp_path / "set", request())


def test_differences_name_the_place():
    there = {"backbone": {"steps": 30, "taps": ["a"]}, "seed": 0}
    here = {"backbone": {"steps": 50, "taps": ["a"]}, "soft": True, "seed": 0}
    assert differences(there, here) == [
        "backbone.steps is 30 there, 50 here",
        "soft is None there, True here",
    ]


def test_read_manifest_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no dataset folder"):
        read_manifest(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no shards"):
        read_manifest(tmp_path)
    write_dataset(tmp_path)
    assert read_manifest(tmp_path)["counts"]["samples"] == 10
    manifest = tmp_path / "dataset.json"
    manifest.rename(tmp_path / "elsewhere.json")
    with pytest.raises(FileNotFoundError, match="not complete: run `predict` again"):
        read_manifest(tmp_path)
    (tmp_path / "elsewhere.json").rename(manifest)
    shard = tmp_path / "shard-000001.tar"
    written = shard.read_bytes()
    shard.write_bytes(written[:-100])
    with pytest.raises(ValueError, match=r"shard-000001.tar has \d+ bytes, not \d+: run `predict`"):
        read_manifest(tmp_path)
    shard.write_bytes(b"")
    with pytest.raises(ValueError, match="shard-000001.tar has 0 bytes"):
        read_manifest(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match="shard-000001.tar is missing"):
        read_manifest(tmp_path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("manifest"))


@pytest.mark.parametrize("text", ['{"format": 2}', "[]", "", "{"])
@pytest.mark.parametrize(
    ("name", "verbs"),
    [
        ("dataset.json", ["report", "refilter", "export", "status"]),
        ("request.json", ["refilter", "status"]),
    ],
)
def test_damaged_files_are_one_line_of_every_verb(dataset, tmp_path, capfd, name, verbs, text):
    folder = shutil.copytree(dataset, tmp_path / "set")
    (folder / name).write_text(text)
    more = {
        "refilter": ["--out", str(tmp_path / "out")],
        "export": ["--format", "voc", "--out", str(tmp_path / "out")],
    }
    for verb in verbs:
        assert main([verb, str(folder), *more.get(verb, [])]) == 2
        error = capfd.readouterr().err
        assert error.startswith(f"ovseg {verb}: {folder / name} is no {name} (")
        assert ": restore it, or" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=f"is no {name}"):
        prepare(folder, request())
