"""Shards of a complete dataset that are lost: they alone are made again."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from acme.backbone import ToyBackbone
from test_filtered_shards import module
from toy_data import contents, data_module, live_stream, write_dataset

from ovseg.status import status_of


@pytest.fixture(scope="module")
def filtered(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("filtered"), module())


def test_a_lost_shard_is_made_again_alone(tmp_path):
    dataset = write_dataset(tmp_path)
    first = contents(dataset)
    times = {path.name: path.stat().st_mtime_ns for path in dataset.glob("*.tar")}
    (dataset / "shard-000001.tar").unlink()

    class Counting(ToyBackbone):
        made = []

        def sample(self, requests):
            self.made += [request.index for request in requests]
            return super().sample(requests)

    data = data_module(backbone=Counting(forget=0.2), predict={"data": live_stream()})
    write_dataset(dataset, data)
    assert Counting.made == [4, 5, 6, 7] and contents(dataset) == first
    again = {path.name: path.stat().st_mtime_ns for path in dataset.glob("*.tar")}
    assert [name for name in times if times[name] != again[name]] == ["shard-000001.tar"]


def test_a_complete_one_that_is_older_is_left_alone(tmp_path, capsys):
    """It does not tell of the words and the unseen classes of its vocabulary."""
    write_dataset(tmp_path)
    request = json.loads((tmp_path / "request.json").read_text())
    for key in ("words_digest", "unseen"):
        del request["config"]["vocabulary"][key]
    (tmp_path / "request.json").write_text(json.dumps(request))
    write_dataset(tmp_path)
    assert "nothing to generate" in capsys.readouterr().out
    (tmp_path / "shard-000001.tar").unlink()
    with pytest.raises(ValueError, match="vocabulary.unseen is None there"):
        write_dataset(tmp_path)


@pytest.mark.parametrize("left", [[], ["shard-000002.tar"]])
def test_a_lost_shard_is_made_again_alone_though_the_rejects_are_gone(filtered, tmp_path, left):
    dataset = Path(shutil.copytree(filtered, tmp_path / "set"))
    first = {name: data for name, data in contents(dataset).items() if "rejected" not in name}
    for path in (dataset / "rejected").iterdir():
        if path.name not in left:
            path.unlink()
    (dataset / "shard-000001.tar").unlink()
    status = status_of(dataset)
    assert (status.state, status.done, status.total) == ("stopped", 2, 3)
    assert status.so_far.kept + status.so_far.rejected == 6 and status.so_far.reasons["gone"] > 0

    class Counting(ToyBackbone):
        made = []

        def sample(self, requests):
            if not self.made:
                during.append(status_of(dataset))
            self.made += [request.index for request in requests]
            return super().sample(requests)

    during, data = [], module()
    data.backbone = Counting(forget=0.2)
    write_dataset(dataset, data)
    assert Counting.made == [4, 5, 6, 7]
    assert [(s.state, s.done, s.writing, s.total) for s in during] == [("running", 2, 1, 3)]
    after = contents(dataset)
    assert {name for name in after if "rejected" in name} == {
        f"rejected/{name}" for name in ["shard-000001.tar", *left]
    }
    assert {name: data for name, data in after.items() if "rejected" not in name} == first


def test_killed_while_a_lost_shard_is_made_again(filtered, tmp_path):
    """Whatever moment it is, the next process goes on; another dataset is still refused."""
    dataset = Path(shutil.copytree(filtered, tmp_path / "set"))
    first = {name: data for name, data in contents(dataset).items() if "rejected" not in name}
    shutil.rmtree(dataset / "rejected")
    (dataset / "shard-000001.tar").unlink()

    class Killed(ToyBackbone):
        def sample(self, requests):
            raise KeyboardInterrupt

    data = module()
    data.backbone = Killed(forget=0.2)
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            write_dataset(dataset, data)
        assert not (dataset / "dataset.json").exists()
        assert status_of(dataset).done == 2
    with pytest.raises(ValueError, match="seed is 0 there, 1 here"):
        write_dataset(dataset, module(seed=1))
    write_dataset(dataset, module())
    after = {name: data for name, data in contents(dataset).items() if "rejected" not in name}
    assert after == first


def test_a_lost_shard_that_comes_out_otherwise(filtered, tmp_path):
    """As on another GPU: of the rejects that are gone only the number is known then."""
    dataset = Path(shutil.copytree(filtered, tmp_path / "set"))
    before = json.loads((dataset / "dataset.json").read_text())
    shutil.rmtree(dataset / "rejected")
    (dataset / "shard-000001.tar").unlink()

    class Other(ToyBackbone):
        def describe(self):
            return ToyBackbone(forget=0.2).describe()

    data = module()
    data.backbone = Other(forget=1.0)
    write_dataset(dataset, data)
    after = json.loads((dataset / "dataset.json").read_text())
    files = {name: facts["samples"] for name, facts in after["rejected_shards"].items()}
    gone = files["shard-000000.tar"] + files["shard-000002.tar"]
    assert files["shard-000001.tar"] == after["yield"]["reasons"]["not found"] == 4
    assert after["yield"]["reasons"]["gone"] == gone > 0
    assert after["yield"]["kept"] + after["yield"]["rejected"] == 10
    for part in ("shards", "rejected_shards"):
        assert after[part]["shard-000000.tar"] == before[part]["shard-000000.tar"]
    assert not (dataset / "dataset.before.json").exists()


def test_what_was_recorded_of_another_dataset_is_forgotten(filtered, tmp_path):
    dataset = Path(shutil.copytree(filtered, tmp_path / "set"))
    for path in dataset.rglob("shard-*.tar"):
        path.unlink()
    write_dataset(dataset, module(seed=1))
    assert contents(dataset) == contents(write_dataset(tmp_path / "new", module(seed=1)))
