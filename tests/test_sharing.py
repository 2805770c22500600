"""Several processes and jobs in one folder: who makes what, and the bytes of one process."""

import random

import pytest
from acme.backbone import ToyBackbone
from toy_data import contents, data_module, live_stream, quiet_trainer, write_dataset
from writers import run

from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.manifest import prepare
from ovseg.data.shard_format import Record
from ovseg.data.sharing import claim, open_shards, publish, ranges, what_is_left
from ovseg.modules.dataset import DatasetModule
from ovseg.structures import Request

SIZED = {"size": 59, "shard_size": 2}
"""30 shards, the last with one sample."""

QUOTA = {"size": 6, "shard_size": 2, "quota": 5, "limit": 80, "classes": ["house", "fish", "car"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The bytes of one process that nobody kills."""
    streams = {"sized": SIZED, "quota": QUOTA}
    folders = {name: tmp_path_factory.mktemp("alone") / name for name in streams}
    for name, stream in streams.items():
        data = data_module(2, ToyBackbone(), predict={"data": live_stream(**stream)}, threads=1)
        write_dataset(folders[name], data)
    return {name: contents(folder) for name, folder in folders.items()}


@pytest.mark.parametrize(("processes", "enough"), [(1, 2), (2, 6), (3, 12)])
def test_processes_that_are_killed_give_the_bytes_of_one(alone, tmp_path, processes, enough):
    """Kills at seeded moments, before any touch of a file, and a shard that is lost in between."""
    moments, kills = random.Random(processes), 0
    nobody = [{}] * processes
    while kills < enough:
        at = [moments.randrange(1, 60) for _ in nobody]
        killed = run(tmp_path / "set", nobody, SIZED, at)
        kills += killed
        if killed < processes:  # it was complete
            assert contents(tmp_path / "set") == alone["sized"]
            (tmp_path / "set" / "shard-000017.tar").unlink()
    run(tmp_path / "set", nobody, SIZED, [None] * processes)
    assert contents(tmp_path / "set") == alone["sized"]


@pytest.mark.parametrize(
    "jobs",
    [[{}] * 3, [{"job_index": n, "num_jobs": 3} for n in range(3)]],
    ids=["same", "array"],
)
def test_a_quota_is_met_together(alone, tmp_path, jobs):
    run(tmp_path / "set", jobs, QUOTA, [9, 30, 50])
    run(tmp_path / "set", jobs, QUOTA, [None] * 3)
    assert contents(tmp_path / "set") == alone["quota"]


def test_jobs_of_an_array_make_their_shares(tmp_path, capsys):
    folder, first = tmp_path / "set", contents(write_dataset(tmp_path / "a"))
    for job, shards, said in (
        (2, [2], "set is not complete: shards 0-1 are missing: run `predict` again, or its other"),
        (1, [1, 2], "set is not complete: shard 0 is missing: run `predict` again, or its other"),
        (1, [1, 2], "shard 0 is missing"),
    ):
        array = {"job_index": job, "num_jobs": 3}
        write_dataset(folder, data_module(predict={"data": live_stream()}, **array))
        names = ["counts.jsonl", "request.json", *(f"shard-{number:06d}.tar" for number in shards)]
        assert sorted(contents(folder)) == names
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == 1 and said in printed[0]
    array = {"job_index": 0, "num_jobs": 3}
    write_dataset(folder, data_module(predict={"data": live_stream()}, **array))
    assert contents(folder) == first and not capsys.readouterr().out
    write_dataset(folder, data_module(predict={"data": live_stream()}, **array))
    assert "has all its shards: nothing to generate" in capsys.readouterr().out


def test_a_job_outside_its_array_is_refused():
    for index, number in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match=f"got job_index {index} and num_jobs {number}"):
            SyntheticDataModule("clipart", job_index=index, num_jobs=number)


def asked(seed=0, **more):
    config = {"seed": seed, "size": 9, "shard_size": 2, "rejected": None, **more}
    return {"config": config, "environment": {}}


def test_a_claim(tmp_path):
    prepare(tmp_path, asked())
    config = asked()["config"]
    held = claim(tmp_path, config, 1)
    assert claim(tmp_path, config, 1) is None
    assert open_shards(tmp_path, config) == [0, 2, 3, 4]
    assert open_shards(tmp_path, config, job_index=1, num_jobs=2) == [3]
    held.write({"__key__": "0", "json": b"{}"}, Record(Request(0, 0, ""), [], [], []))
    publish(tmp_path, held)
    assert claim(tmp_path, config, 1) is None  # done
    dropped = claim(tmp_path, config, 0)
    dropped.drop()
    assert open_shards(tmp_path, config, job_index=1, num_jobs=2) == [3]
    assert open_shards(tmp_path, config) == [0, 2, 3, 4]


def test_who_prepares_last_does_not_change_what_another_makes(tmp_path):
    prepare(tmp_path, asked())
    prepare(tmp_path, asked(seed=1))  # nobody has begun
    with pytest.raises(ValueError, match="another dataset was begun in"):
        claim(tmp_path, asked()["config"], 0)
    held = claim(tmp_path, asked(seed=1)["config"], 0)
    with pytest.raises(ValueError, match=r"another dataset \(seed is 1 there, 2 here\)"):
        prepare(tmp_path, asked(seed=2))
    held.drop()
    prepare(tmp_path, asked(seed=2))


def test_a_complete_dataset_takes_no_further_shard(tmp_path):
    """One that is made in search of a quota, when another process has met it."""
    prepare(tmp_path, asked())
    held = claim(tmp_path, asked()["config"], 7)
    (tmp_path / "dataset.json").write_text("{}")
    publish(tmp_path, held)
    assert not list(tmp_path.glob("shard-*"))
    assert claim(tmp_path, asked()["config"], 8) is None


def test_in_search_of_a_quota_every_process_has_a_shard(tmp_path):
    """After those of `size` shards are anybody's, and as many are open as processes may come."""
    config = asked(quota=1, limit=100, requested_classes=[1])["config"]
    prepare(tmp_path, {"config": config, "environment": {}})
    held = [claim(tmp_path, config, number) for number in range(5)]
    assert open_shards(tmp_path, config, processes=2, job_index=1, num_jobs=2) == [5, 6]
    for shard in held[1:]:
        shard.drop()
    assert open_shards(tmp_path, config, processes=2, job_index=1, num_jobs=2) == [1, 3]
    held[0].drop()


def test_what_is_left(tmp_path):
    prepare(tmp_path, asked())
    config = asked()["config"]
    held = [claim(tmp_path, config, number) for number in (0, 1, 4)]
    line = what_is_left(tmp_path, config)
    assert "complete: shards 0-1, 4 are being written by other processes, shards 2-3 are" in line
    for shard in held:
        shard.drop()
    for number in range(5):
        (tmp_path / f"shard-{number:06d}.tar").write_bytes(b"done")
    assert "another process has just written the last shard" in what_is_left(tmp_path, config)


def test_ranges():
    assert ranges([7, 1, 2, 0, 9, 10]) == "0-2, 7, 9-10"
    assert ranges([]) == ""


def test_the_jobs_have_no_say_in_the_configuration(tmp_path):
    array = {"job_index": 1, "num_jobs": 2}
    write_dataset(tmp_path / "a", data_module(predict={"data": live_stream()}, **array))
    write_dataset(tmp_path / "b", data_module(predict={"data": live_stream()}))
    requests = [(tmp_path / name / "request.json").read_text() for name in "ab"]
    assert requests[0] == requests[1]


def test_without_a_writer_a_job_gets_its_share(tmp_path):
    seen = []

    class Seeing(DatasetModule):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            seen.extend(batch.indices.tolist())
            return batch

    data = data_module(predict={"data": live_stream()}, job_index=1, num_jobs=2)
    quiet_trainer(tmp_path).predict(Seeing(), data, return_predictions=False)
    assert seen == [4, 5, 6, 7]
