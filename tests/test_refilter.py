"""`ovseg refilter` against generating with these settings in the first place."""

import json

import numpy as np
import pytest
import torch
import yaml
from acme.annotator import ColorAnnotator
from acme.backbone import ToyBackbone
from toy_data import contents, data_module, live_stream, write_dataset

from ovseg import refilter
from ovseg.__main__ import main
from ovseg.data.shard_file import read_members, read_records
from ovseg.data.shard_format import decode_sample
from ovseg.quality import QualityFilter


class Blurred(ColorAnnotator):
    """Colours with soft edges: every pixel has the mean of its neighbours."""

    def annotate(self, sample):
        found = super().annotate(sample)
        found.masks = torch.nn.functional.avg_pool2d(found.masks, 5, 1, 2) * 0.97
        return found


def write(folder, bounds=None, soft_stride=1, rejected="apart", **arguments):
    judge = QualityFilter(**bounds) if bounds is not None else None
    stream = live_stream(10, filter=judge, **arguments)
    stream.annotator = Blurred()
    data = data_module(backbone=ToyBackbone(forget=0.2), predict={"data": stream})
    return write_dataset(folder, data, True, soft_stride=soft_stride, rejected=rejected)


def samples(folder):
    """Return ``{path: [members of a sample]}`` of all tars, and the manifest's account of them."""
    manifest = json.loads((folder / "dataset.json").read_text())
    facts = ("counts", "yield", "shards", "rejected_shards", "filter", "threshold", "band")
    tars = {str(p.relative_to(folder)): list(read_members(p)) for p in folder.rglob("*.tar")}
    return tars, {key: manifest[key] for key in facts}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    return write(tmp_path_factory.mktemp("strict"), {"min_area": 0.35}, threshold=0.3, band=0.05)


def test_new_bounds_and_levels_give_what_predict_gives(plain, strict, tmp_path):
    config = tmp_path / "filter.yaml"
    judge = {"class_path": "ovseg.quality.QualityFilter", "init_args": {"min_area": 0.35}}
    config.write_text(yaml.safe_dump({"filter": judge, "threshold": 0.3, "rejected": "apart"}))
    out = ["--out", str(tmp_path / "new"), "--config", str(config), "--band", "0.05"]
    assert main(["refilter", str(plain), *out]) == 0
    assert samples(tmp_path / "new") == samples(strict)
    tars, manifest = samples(strict)
    assert 0 < manifest["yield"]["rejected"] < 10
    before = [m["mask.png"] for part in samples(plain)[0].values() for m in part]
    after = {m["mask.png"] for part in tars.values() for m in part}
    assert sum(mask not in after for mask in before) > 7  # other label maps


def test_rejects_that_were_kept_apart_come_back(plain, strict, tmp_path):
    out = ["--out", str(tmp_path / "new"), "--threshold", "0.5", "--band", "0"]
    assert main(["refilter", str(strict), *out]) == 0
    tars, manifest = samples(tmp_path / "new")
    assert {name: tars[name] for name in tars if "rejected" not in name} == samples(plain)[0]
    assert manifest["yield"]["rejected"] == 0
    source = json.loads((tmp_path / "new" / "dataset.json").read_text())["source"]
    assert source["threshold"] == 0.3 and source["filter"]["min_area"] == 0.35


def test_what_was_dropped_stays_away(plain, tmp_path, capfd):
    dropped = write(tmp_path / "old", {"min_area": 0.35}, rejected="drop")
    flags = ["--filter", "QualityFilter", "--filter.min_area", "0.2", "--filter.max_area", "0.5"]
    assert main(["refilter", str(dropped), "--out", str(tmp_path / "new"), *flags]) == 0
    assert main(["refilter", str(plain), "--out", str(tmp_path / "all"), *flags]) == 0
    lost = 0
    for number in range(3):
        name = f"shard-{number:06d}.tar"
        before = {r.request.index: r for r in read_records(tmp_path / "old" / "rejected" / name)}
        wanted = {r.request.index: r for r in read_records(tmp_path / "all" / name)}
        kept = {r.request.index: r for r in read_records(tmp_path / "new" / name)}
        rejected = {r.request.index: r for r in read_records(tmp_path / "new/rejected" / name)}
        assert kept == {index: r for index, r in wanted.items() if index not in before}
        assert all(rejected[i].verdict == before[i].verdict for i in before.keys() & wanted.keys())
        lost += len(before.keys() & wanted.keys())
    assert lost and f"{lost} more would be kept, but were dropped" in capfd.readouterr().out


def test_smaller_soft_masks_make_nearly_the_same_labels(strict, tmp_path):
    coarse = write(tmp_path / "coarse", soft_stride=2)
    refilter.refilter(coarse, tmp_path / "new", None, 0.3, 0.05)
    exact = write(tmp_path / "exact", threshold=0.3, band=0.05)
    for mine, theirs in zip(
        read_members(tmp_path / "new" / "shard-000000.tar"),
        read_members(exact / "shard-000000.tar"),
        strict=True,
    ):
        maps = [decode_sample(m).mask for m in (mine, theirs)]
        assert 0.8 < np.mean(maps[0] == maps[1]) < 1


def test_a_killed_one_goes_on(plain, tmp_path, monkeypatch):
    judge = QualityFilter(min_area=0.3)
    refilter.refilter(plain, tmp_path / "whole", judge, 0.4)
    whole = contents(tmp_path / "whole")

    def killed(*arguments):
        if arguments[0].files[0].path.name == "shard-000001.tar":
            raise KeyboardInterrupt
        return original(*arguments)

    original = refilter._write
    monkeypatch.setattr(refilter, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        refilter.refilter(plain, tmp_path / "new", judge, 0.4)
    assert sorted(contents(tmp_path / "new")) == [
        "rejected/shard-000000.tar",
        "request.json",
        "shard-000000.tar",
    ]
    monkeypatch.undo()
    first = (tmp_path / "new" / "shard-000000.tar").stat().st_mtime_ns
    refilter.refilter(plain, tmp_path / "new", judge, 0.4)
    assert contents(tmp_path / "new") == whole
    assert (tmp_path / "new" / "shard-000000.tar").stat().st_mtime_ns == first


def test_refusals(plain, tmp_path, capfd):
    bare = write_dataset(tmp_path / "bare")
    cases = [
        ([tmp_path / "none"], "no dataset folder"),
        (
            [bare, "--threshold", "0.4"],
            "holds no soft masks to make label maps",
        ),
        ([plain, "--band", "-1"], "band >= 0"),
        ([plain, "--filter", "QualityFilter", "--filter.min_area", "3"], "min_area must be in"),
        ([plain, "--config", tmp_path / "no.yaml"], "no.yaml"),
    ]
    for arguments, words in cases:
        out = ["--out", str(tmp_path / "out")]
        assert main(["refilter", *map(str, arguments), *out]) == 2
        error = capfd.readouterr().err.strip()
        assert words in error and error.count("\n") == 0, error
        assert not (tmp_path / "out").exists()
    before = contents(plain)
    assert main(["refilter", str(plain), "--out", str(plain), "--threshold", "0.4"]) == 2
    assert "holds another dataset" in capfd.readouterr().err
    assert contents(plain) == before
    manifest = json.loads((bare / "dataset.json").read_text())
    del manifest["yield"]
    (bare / "dataset.json").write_text(json.dumps(manifest))
    assert main(["refilter", str(bare), "--out", str(tmp_path / "out")]) == 2
    assert "has format 1, without facts" in capfd.readouterr().err
