"""`predict` with a filter and a quota: what stands where, and that only finished shards decide."""

import json
from collections import Counter

import pytest
from acme.backbone import ToyBackbone
from toy_data import contents, data_module, live_stream, write_dataset

from ovseg.callbacks.shard_writer import ShardWriter
from ovseg.data.found import FoundStream
from ovseg.data.prompts import TemplatePrompts
from ovseg.data.shard_file import read_members, read_records
from ovseg.data.shards import ShardStream
from ovseg.quality import QualityFilter
from ovseg.vocabulary import Vocabulary

BOUNDS = {"min_area": 0.2, "must_be_found": True}
CLASSES = ["house", "fish", "car"]


def module(size=10, bounds=BOUNDS, forget=0.2, **arguments):
    judge = QualityFilter(**bounds) if bounds else None
    stream = live_stream(size, filter=judge, **arguments)
    return data_module(backbone=ToyBackbone(forget=forget), predict={"data": stream})


def reasons_by_hand(image_labels, request, found):
    """Return what is wrong with each entity, from the label map alone."""
    reasons = []
    for entity, ok in zip(request.entities, found, strict=True):
        area = float((image_labels == entity.class_id).double().mean())
        small = f"area {round(area, 6):g} < 0.2" if area < 0.2 else ""
        reasons.append(small if ok else "not found")
    return reasons


def judged(data, indices):
    """Return ``{index: (request, found, verdict)}`` of samples made without a writer."""
    stream, results = data.predict["data"], {}
    stream.bind(data.vocabulary)
    batch = stream.complete(stream[indices], data.backbone)
    for row, request in enumerate(batch.requests):
        found = batch.found[row, : len(request.entities)].tolist()
        results[request.index] = (
            request,
            found,
            reasons_by_hand(batch.labels[row], request, found),
        )
    return results


@pytest.fixture(scope="module")
def filtered(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("filtered"), module())


def test_rejects_stand_apart(filtered, tmp_path):
    expected = judged(module(), list(range(10)))
    good = [i for i, (_, _, verdict) in expected.items() if not any(verdict)]
    assert 3 < len(good) < 9
    whole = write_dataset(tmp_path / "whole", module(bounds=None))
    parted = write_dataset(tmp_path / "apart", module(), rejected="apart")
    for number in range(3):
        name = f"shard-{number:06d}.tar"
        indices = range(4 * number, min(4 * number + 4, 10))
        kept, rejected = (read_records(filtered / part / name) for part in ("", "rejected"))
        assert [r.request.index for r in kept] == [i for i in indices if i in good]
        assert [r.request.index for r in rejected] == [i for i in indices if i not in good]
        for record in (*kept, *rejected):
            assert record.verdict == expected[record.request.index][2]
        dropped = list(read_members(filtered / "rejected" / name))
        assert all(set(members) == {"json"} for members in dropped)
        # but for the verdict, what is apart is what is written without a filter
        everything = dict(zip(indices, read_members(whole / name), strict=True))
        for record, members in zip(rejected, read_members(parted / "rejected" / name), strict=True):
            plain = everything[record.request.index]
            assert members.keys() == plain.keys()
            assert all(members[part] == plain[part] for part in plain if part != "json")
        assert (filtered / name).read_bytes() == (parted / name).read_bytes()


def test_dataset_json_tells_the_yield(filtered):
    manifest = json.loads((filtered / "dataset.json").read_text())
    asked, kept, reasons = Counter(), Counter(), Counter()
    results = judged(module(), list(range(10))).values()
    vocabulary = Vocabulary.load("clipart", "1")
    for request, _, verdict in results:
        keys = [vocabulary[entity.class_id].key for entity in request.entities]
        asked.update(keys)
        kept.update(keys * (not any(verdict)))
        reasons.update({why and ("area < 0.2", why)[why == "not found"] for why in verdict} - {""})
    number = sum(not any(verdict) for _, _, verdict in results)
    assert manifest["yield"] == {
        "kept": number,
        "rejected": 10 - number,
        "classes": {key: {"asked": asked[key], "kept": kept[key]} for key in asked},
        "reasons": dict(reasons),
    }
    assert len(reasons) == 2
    assert manifest["counts"]["samples"] == number
    assert all(c["prompted"] == c["found"] for c in manifest["counts"]["classes"].values())
    assert manifest["filter"]["class_path"] == "ovseg.quality.QualityFilter"
    assert manifest["filter"]["min_area"] == 0.2 and manifest["rejected"] == "drop"
    files = manifest["rejected_shards"].values()
    assert sum(file["samples"] for file in files) == 10 - number


def test_readers_see_what_was_kept(filtered):
    vocabulary = Vocabulary.load("clipart", "1")
    whole, found = ShardStream(str(filtered)), FoundStream(str(filtered))
    whole.bind(vocabulary)
    found.bind(vocabulary)
    assert len(whole) == len(found) == sum(s["samples"] for s in whole.manifest["shards"].values())
    indices = [whole.sample(position).request.index for position in range(len(whole))]
    assert indices == sorted(set(indices)) and all(whole[list(range(len(whole)))].found.any(1))


def test_no_sample_may_be_left(tmp_path):
    write_dataset(tmp_path, module(5, {"min_area": 1.0}, forget=0.0))
    stream = ShardStream(str(tmp_path))
    stream.bind(Vocabulary.load("clipart", "1"))
    assert len(stream) == 0 and stream.manifest["yield"]["rejected"] == 5
    assert FoundStream(str(tmp_path)).excluded == 0.0


def test_a_killed_one_is_resumed(filtered, tmp_path):
    first = contents(filtered)
    write_dataset(tmp_path, module())
    assert contents(tmp_path) == first
    # killed between the two names of a shard, and in the middle of another one
    (tmp_path / "shard-000001.tar").rename(tmp_path / "shard-000001.tar.tmp")
    (tmp_path / "rejected" / "shard-000002.tar").unlink()
    (tmp_path / "shard-000002.tar").unlink()
    (tmp_path / "dataset.json").unlink()
    write_dataset(tmp_path, module())
    assert contents(tmp_path) == first
    # the rejects of a finished one may go
    for path in (tmp_path / "rejected").iterdir():
        path.unlink()
    write_dataset(tmp_path, module())
    assert not any((tmp_path / "rejected").iterdir())


def quota_module(quota=4, limit=50, **arguments):
    return module(4, classes=CLASSES, quota=quota, limit=limit, **arguments)


def test_a_quota_is_met_by_the_first_shards_that_can(tmp_path):
    write_dataset(tmp_path / "set", quota_module())
    manifest = json.loads((tmp_path / "set" / "dataset.json").read_text())
    data, kept, shards = quota_module(), Counter(), 0
    while shards < 1 or any(kept[key] < 4 for key in CLASSES):
        for start, end in ((0, 3), (3, 4)):  # the batches inside a shard
            indices = list(range(4 * shards + start, 4 * shards + end))
            for request, _, verdict in judged(data, indices).values():
                kept.update([e.name for e in request.entities] * (not any(verdict)))
        shards += 1
    assert 1 < shards == len(manifest["shards"])
    assert {key: numbers["kept"] for key, numbers in manifest["yield"]["classes"].items()} == kept
    # interrupted, and with shards that another number of processes has made ahead
    first = contents(tmp_path / "set")
    more = write_dataset(tmp_path / "more", quota_module(quota=9))
    ahead = contents(more).keys() - first.keys()
    assert any(name.startswith("shard-") for name in ahead)
    for name in [*ahead, "shard-000001.tar"]:
        (tmp_path / "set" / name).write_bytes((more / name).read_bytes())
    (tmp_path / "set" / "dataset.json").unlink()
    (tmp_path / "set" / "shard-000000.tar").unlink()
    write_dataset(tmp_path / "set", quota_module())
    assert contents(tmp_path / "set") == first


def test_a_quota_waits_for_classes_that_were_not_asked_for_yet(tmp_path):
    """Four samples ask for one class each; there are three that the annotator may find."""
    data = quota_module(1, 60, bounds=None, forget=0.0)
    stream = data.predict["data"]
    stream.prompts = TemplatePrompts({1: 1}, [*CLASSES, "moon", "tree"])
    stream.annotator.classes = [*CLASSES, "moon"]
    write_dataset(tmp_path, data)
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    wanted = [data.vocabulary.id_of(name) for name in (*CLASSES, "moon")]
    assert manifest["quota_classes"] == sorted(wanted) and len(manifest["shards"]) == 2
    assert manifest["yield"]["classes"].keys() >= {*CLASSES, "moon"}


class Hidden(TemplatePrompts):
    """Prompts that do not say which classes they name."""

    def named_classes(self, vocabulary):
        return None


def test_what_was_never_asked_for_is_printed(tmp_path, capsys):
    for name, prompts in (("told", TemplatePrompts), ("not", Hidden)):
        data = quota_module(1, 8, bounds=None, forget=0.0)
        data.predict["data"].prompts = prompts({1: 1}, CLASSES)
        data.predict["data"].annotator.classes = [*CLASSES, "moon", "tree"]
        write_dataset(tmp_path / name, data)
        told = json.loads((tmp_path / name / "dataset.json").read_text())["quota_classes"]
        assert (told is None) == (name == "not")
        line = "has no samples of tree, moon for its quota: no prompt asked for them"
        assert (line in capsys.readouterr().out) == (name == "not")


def test_the_limit_ends_a_quota_that_cannot_be_met(tmp_path):
    write_dataset(tmp_path, quota_module(100, 10))
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    assert manifest["yield"]["kept"] + manifest["yield"]["rejected"] == 10
    assert len(manifest["shards"]) == 3


def test_arguments():
    with pytest.raises(ValueError, match="go together, got 3 and None"):
        live_stream(quota=3)
    with pytest.raises(ValueError, match="go together, got 0 and 9"):
        live_stream(4, quota=0, limit=9)
    with pytest.raises(ValueError, match=r"limit must be >= size \(10\), got 9"):
        live_stream(quota=3, limit=9)
    with pytest.raises(ValueError, match="soft_stride must be >= 1 or null, got 0"):
        ShardWriter("out", soft_stride=0)


def test_the_yield_is_printed_once(tmp_path, capfd):
    write_dataset(tmp_path, quota_module())
    printed = capfd.readouterr().out
    assert printed.count("samples kept") == 1 and "area < 0.2" in printed
    write_dataset(tmp_path, quota_module())
    assert "nothing to generate" in capfd.readouterr().out
