"""Writing shards: what is in the folder, resuming, refusing."""

import errno
import fcntl
import io
import json
import tarfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from acme.backbone import ToyBackbone
from PIL import Image
from toy_data import contents, data_module, live_stream, quiet_trainer, write_dataset

from ovseg.callbacks.shard_writer import ShardWriter
from ovseg.modules.dataset import DatasetModule


def read_tar(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_members_of_a_shard(tmp_path):
    data = data_module(predict={"data": live_stream()})
    write_dataset(tmp_path, data, soft=True)
    members = {k: v for n in range(3) for k, v in read_tar(tmp_path / f"shard-{n:06d}.tar").items()}
    kinds = ["image.png", "instances.png", "json", "latent.npy", "mask.png", "soft.npy"]
    assert sorted(members) == [f"{i:08d}.{kind}" for i in range(10) for kind in kinds]
    stream = data.predict["data"]
    # the batches of 3 inside shards of 4
    for indices in ([0, 1, 2], [3], [4, 5, 6], [7], [8, 9]):
        batch = stream.complete(stream[indices], data.backbone)
        for row, index in enumerate(indices):
            check_sample(members, f"{index:08d}", batch, row)


def label_facts_of(mask, ids):
    """The toy paints whole boxes."""
    return {
        "area": [round((mask == i).mean(), 6) for i in ids],
        "components": [int((mask == i).any()) for i in ids],
        "border": [
            bool(np.pad(mask == i, 1)[[1, -2]].any() or np.pad(mask == i, 1)[:, [1, -2]].any())
            for i in ids
        ],
    }


def check_sample(members, key, batch, row):
    image = np.array(Image.open(io.BytesIO(members[f"{key}.image.png"])))
    assert np.array_equal(image, batch.images[row].permute(1, 2, 0).numpy())
    mask = np.array(Image.open(io.BytesIO(members[f"{key}.mask.png"])))
    assert mask.dtype == np.uint8 and np.array_equal(mask, batch.labels[row].numpy())
    latent = np.load(io.BytesIO(members[f"{key}.latent.npy"]), allow_pickle=False)
    assert latent.dtype == np.float32 and np.array_equal(latent, batch.latents[row].numpy())
    request, facts = batch.requests[row], json.loads(members[f"{key}.json"])
    number = len(request.entities)
    soft = np.load(io.BytesIO(members[f"{key}.soft.npy"]), allow_pickle=False)
    assert soft.dtype == np.float16 and soft.shape == (number, 8, 8)  # the finest tap: stride 4
    shares = batch.annotation.masks[row, :number].reshape(number, 8, 4, 8, 4).mean((2, 4))
    assert np.array_equal(soft, shares.half().numpy())
    instances = np.array(Image.open(io.BytesIO(members[f"{key}.instances.png"])))
    assert np.array_equal(instances, batch.annotation.instances[row].numpy())
    assert facts == {
        "index": request.index,
        "seed": request.seed,
        "prompt": request.prompt,
        "negative_prompt": "",
        "names": [e.name for e in request.entities],
        "class_ids": [e.class_id for e in request.entities],
        "starts": [e.span[0] for e in request.entities],
        "ends": [e.span[1] for e in request.entities],
        "found": batch.found[row, :number].tolist(),
        "scores": batch.annotation.scores[row, :number].tolist(),
        **label_facts_of(mask, [e.class_id for e in request.entities]),
        "uncertain": [0.0] * number,
        "agreement": [-1.0] * number,
        "clip": [-1.0] * number,
        "verdict": [""] * number,
        "timesteps": [1.0],
    }


def test_two_runs_and_a_resumed_one_give_the_same_bytes(tmp_path):
    first = contents(write_dataset(tmp_path / "a"))
    assert contents(write_dataset(tmp_path / "b")) == first
    # as after a kill: one shard made, one half-written, no dataset.json
    (tmp_path / "b" / "shard-000001.tar").rename(tmp_path / "b" / "shard-000001.tar.tmp")
    (tmp_path / "b" / "dataset.json").unlink()
    assert contents(write_dataset(tmp_path / "b")) == first
    # a shard that was damaged later
    (tmp_path / "b" / "shard-000000.tar").write_bytes(b"")
    (tmp_path / "b" / "shard-000002.tar").write_bytes(first["shard-000002.tar"][:-700])
    assert contents(write_dataset(tmp_path / "b")) == first
    # killed between the last shard and dataset.json
    (tmp_path / "b" / "dataset.json").unlink()
    assert contents(write_dataset(tmp_path / "b")) == first


def test_a_complete_dataset_is_left_alone(tmp_path):
    write_dataset(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    class Broken(ToyBackbone):
        def sample(self, requests):
            raise AssertionError("nothing is to be sampled")

        def describe(self):
            return ToyBackbone().describe()

    write_dataset(tmp_path, data_module(backbone=Broken(), predict={"data": live_stream()}))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_another_dataset_is_refused(tmp_path):
    write_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"another dataset \(seed is 0 there, 1 here\)"):
        write_dataset(tmp_path, data_module(predict={"data": live_stream(seed=1)}))
    with pytest.raises(ValueError, match="batch_size is 3 there, 4 here"):
        write_dataset(tmp_path, data_module(batch_size=16, predict={"data": live_stream()}))
    with pytest.raises(ValueError, match="soft is False there, True here"):
        write_dataset(tmp_path, soft=True)


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")

    class Broken(ToyBackbone):
        def sample(self, requests):
            raise AssertionError("it must fail before anything is sampled")

    data = data_module(backbone=Broken(), predict={"data": live_stream()})
    with pytest.raises(PermissionError, match="cannot write the dataset to .*choose another"):
        write_dataset(tmp_path / "file" / "out", data)


def test_a_part_of_the_batches_is_not_called_complete(tmp_path):
    trainer = quiet_trainer(
        tmp_path, callbacks=[ShardWriter(str(tmp_path / "out"))], limit_predict_batches=3
    )
    trainer.predict(
        DatasetModule(), data_module(predict={"data": live_stream()}), return_predictions=False
    )
    names = ["counts.jsonl", "request.json", "shard-000000.tar"]
    assert sorted(contents(tmp_path / "out")) == names
    whole = write_dataset(tmp_path / "whole")
    assert contents(write_dataset(tmp_path / "out")) == contents(whole)


@pytest.mark.parametrize("limits", [{"limit_predict_batches": 1}, {"fast_dev_run": True}])
def test_one_batch_ends(tmp_path, limits):
    writer = ShardWriter(str(tmp_path / "out"))
    trainer = quiet_trainer(tmp_path, callbacks=[writer], **limits)
    data = data_module(predict={"data": live_stream()})
    trainer.predict(DatasetModule(), data, return_predictions=False)
    assert not writer.wants_more and sorted(contents(tmp_path / "out")) == ["request.json"]


def test_a_part_of_each_of_several_streams(tmp_path):
    streams = {"one": live_stream(), "two": live_stream(seed=5)}
    callbacks = [ShardWriter(str(tmp_path / "{name}"))]
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, limit_predict_batches=3)
    trainer.predict(DatasetModule(), data_module(predict=streams), return_predictions=False)
    for name in streams:  # the third batch begins a shard that is not finished
        shards = [path.name for path in (tmp_path / name).glob("shard-*")]
        assert shards == ["shard-000000.tar"], name


def test_threads_are_fixed_and_recorded(tmp_path):
    before = torch.get_num_threads()
    try:
        write_dataset(tmp_path, data_module(predict={"data": live_stream()}, threads=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    environment = json.loads((tmp_path / "dataset.json").read_text())["environment"]
    assert environment["threads"] == 2 and environment["device"] == "cpu"
    assert environment["versions"]["torch"] == version("torch")


def test_only_consecutive_batches_of_a_shard_are_written(tmp_path):
    data = data_module(predict={"data": live_stream()})
    writer = ShardWriter(str(tmp_path))
    data.predict["data"].bind(data.vocabulary)
    batch = data.predict["data"].complete(data.predict["data"][[1, 2]], data.backbone)
    with pytest.raises(ValueError, match="not the next part of a shard"):
        writer.on_predict_batch_end(None, None, batch, batch, 0)


def test_several_streams_go_to_folders_of_their_own(tmp_path):
    """Each as if it had been written alone."""
    streams = {"few": live_stream(3), "more": live_stream(6, seed=5)}
    trainer = quiet_trainer(tmp_path, callbacks=[ShardWriter(str(tmp_path / "{name}"))])
    trainer.predict(DatasetModule(), data_module(predict=streams), return_predictions=False)
    alone = write_dataset(tmp_path / "alone", data_module(predict={"data": live_stream(6, seed=5)}))
    assert contents(tmp_path / "more") == contents(alone)
    assert len(list((tmp_path / "few").glob("*.tar"))) == 1


def test_several_streams_need_a_place_for_their_name(tmp_path):
    streams = {"few": live_stream(3), "more": live_stream(6)}
    trainer = quiet_trainer(tmp_path, callbacks=[ShardWriter(str(tmp_path / "one"))])
    with pytest.raises(ValueError, match="must hold {name} to keep 2 streams apart"):
        trainer.predict(DatasetModule(), data_module(predict=streams), return_predictions=False)


class FullDisk:
    """A tar writer on a disk that is full after some samples."""

    room = 6

    def __init__(self, file, **options):
        from webdataset import TarWriter

        self.tar = TarWriter(file, **options)

    def write(self, sample):
        FullDisk.room -= 1
        if FullDisk.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.tar.write(sample)

    def close(self):
        self.tar.close()


def test_a_full_disk_keeps_what_was_finished(tmp_path, monkeypatch):
    first = contents(write_dataset(tmp_path / "a"))
    monkeypatch.setattr("ovseg.data.shard_writing.TarWriter", FullDisk)
    with pytest.raises(OSError, match="what was finished is kept: mend that and run the same"):
        write_dataset(tmp_path / "b")
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert names == {"counts.jsonl", "request.json", "shard-000000.tar"}
    monkeypatch.undo()
    assert contents(write_dataset(tmp_path / "b")) == first


def test_a_disk_that_is_full_at_the_end(tmp_path, monkeypatch):
    first = contents(write_dataset(tmp_path / "a"))

    def fsync(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    dataset = write_dataset(tmp_path / "b")
    for name in ("dataset.json", "card.md"):
        (dataset / name).unlink()
    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(
        OSError, match=r"cannot write .*dataset.json \(No space.*is kept: mend that"
    ):
        write_dataset(dataset)
    assert sorted(first.keys() - contents(dataset).keys()) == ["card.md", "dataset.json"]
    assert contents(dataset).keys() < first.keys()
    monkeypatch.undo()
    assert contents(write_dataset(dataset)) == first


def test_a_complete_dataset_needs_no_writable_folder(tmp_path, monkeypatch, capsys):
    def refuse(folder):
        raise PermissionError(errno.EROFS, "Read-only file system")

    dataset = write_dataset(tmp_path)
    for module in ("manifest", "sharing"):
        monkeypatch.setattr(f"ovseg.data.{module}.locked", refuse)
    capsys.readouterr()
    write_dataset(dataset)
    assert "nothing to generate" in capsys.readouterr().out
    (dataset / "shard-000001.tar").unlink()
    with pytest.raises(PermissionError, match="cannot write the dataset to .*Read-only file sys"):
        write_dataset(dataset)


def test_a_shard_that_another_process_is_writing_is_left_to_it(tmp_path, capsys):
    first = contents(write_dataset(tmp_path / "a"))
    out = write_dataset(tmp_path / "out")
    for name in ("shard-000000.tar", "shard-000001.tar", "dataset.json", "card.md"):
        (out / name).unlink()
    with open(out / "shard-000001.tar.tmp", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"half a shard")
        file.flush()
        capsys.readouterr()
        write_dataset(out)
        assert Path(file.name).read_bytes() == b"half a shard"
        assert capsys.readouterr().out.endswith(
            "out is not complete: shard 1 is being written by other processes; the process that "
            "ends last completes it\n"
        )
        assert "dataset.json" not in contents(out)
        assert contents(out)["shard-000000.tar"] == first["shard-000000.tar"]
    assert contents(write_dataset(out)) == first  # the lock went with the process
