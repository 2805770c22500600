"""Reading back what `predict` wrote, at random; and a live stream's equal."""

import hashlib
import io
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from acme.backbone import ToyBackbone
from PIL import Image
from toy_data import data_module, live_stream, write_dataset
from webdataset import TarWriter

from ovseg.backbones.unet import UNetBackbone
from ovseg.data.shard_format import encode_sample
from ovseg.data.shards import ShardStream
from ovseg.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def open_stream(folder, **arguments):
    stream = ShardStream(str(folder), **arguments)
    stream.bind(Vocabulary.load("clipart", "1"))
    return stream


def test_any_batch_equals_the_live_one(dataset):
    stored, backbone = open_stream(dataset), ToyBackbone(forget=0.2)
    live = data_module(predict={"data": live_stream()}).predict["data"]
    live.bind(stored.vocabulary)
    assert len(stored) == 10
    for positions in ([0, 1, 2], [9, 0, 5, 4], [8]):
        expected = live.complete(live[positions], backbone)
        batch = stored.complete(stored[positions], backbone)
        assert batch.requests == expected.requests and batch.indices.tolist() == positions
        for name in ("images", "labels", "found", "latents", "timesteps"):
            there, here = getattr(expected, name), getattr(batch, name)
            assert here.dtype == there.dtype and torch.equal(here, there), name
        for tap, features in expected.features.maps.items():
            torch.testing.assert_close(batch.features.maps[tap], features, rtol=0, atol=1e-5)
        assert torch.equal(batch.entities.text, expected.entities.text)
        assert torch.equal(batch.entities.valid, expected.entities.valid)


def test_a_diffusion_model_gives_its_features_again(tiny_pipeline, tmp_path):
    taps = ["down_blocks.1", "mid_block", "up_blocks.2"]
    backbone = UNetBackbone(tiny_pipeline, taps, steps=3, tap_steps=(1, 2), both_branches=True)
    data = data_module(backbone=backbone, predict={"data": live_stream(5)})
    write_dataset(tmp_path, data)
    stored, live = open_stream(tmp_path), data.predict["data"]
    positions = [4]  # a batch of its own when it was written, and no other shares its shard
    with torch.no_grad():
        expected = live.complete(live[positions], backbone)
        batch = stored.complete(stored[positions], backbone)
    assert torch.equal(batch.images, expected.images)
    assert torch.equal(batch.latents, expected.latents)
    assert batch.timesteps.tolist() == expected.timesteps.tolist()
    for tap, features in expected.features.maps.items():
        torch.testing.assert_close(batch.features.maps[tap], features, rtol=0, atol=1e-5)


def test_without_a_backbone_there_are_images_and_labels(dataset):
    stream = open_stream(dataset)
    batch = stream.complete(stream[[2, 3]], None)
    assert batch.features is None and batch.entities is None
    assert batch.images.shape == (2, 3, 32, 32) and batch.images.dtype == torch.uint8
    assert batch.labels.shape == (2, 32, 32) and batch.labels.dtype == torch.int64


def test_where_no_backbone_is_latents_are_not_read(dataset):
    whole, stream = open_stream(dataset), open_stream(dataset)
    stream.check(None)
    batch, expected = stream[[9, 2]], whole[[9, 2]]
    assert batch.latents is None and expected.latents is not None
    assert batch.requests == expected.requests and torch.equal(batch.images, expected.images)
    assert torch.equal(batch.found, expected.found) and batch.timesteps.tolist() == [1.0]
    stream.check(ToyBackbone())
    assert torch.equal(stream[[9, 2]].latents, expected.latents)


def test_a_pickled_stream_reads_too(dataset):  # as a worker gets it that is not forked
    stream = open_stream(dataset)
    expected = stream[[9, 2]]
    assert torch.equal(pickle.loads(pickle.dumps(stream))[[9, 2]].images, expected.images)


def test_limit(dataset):
    assert len(open_stream(dataset, limit=6)) == 6
    assert len(open_stream(dataset, limit=60)) == 10
    with pytest.raises(ValueError, match="limit must be >= 1 or null, got 0"):
        ShardStream(str(dataset), limit=0)
    with pytest.raises(IndexError, match="position 6 is outside 0..5"):
        open_stream(dataset, limit=6).sample(6)


def test_another_backbone_is_refused(dataset):
    stream, other = open_stream(dataset), ToyBackbone(size=40)
    stream.check(ToyBackbone()), stream.check(None)
    with pytest.raises(ValueError) as caught:
        stream.check(other)
    assert ToyBackbone().digest in str(caught.value) and other.digest in str(caught.value)


def test_a_reader_chooses_taps_branches_and_some_of_the_stored_steps(tiny_pipeline, tmp_path):
    taps = ["down_blocks.1", "mid_block"]
    writer = UNetBackbone(tiny_pipeline, taps, steps=4, tap_steps=(1, 2, 4))
    write_dataset(tmp_path, data_module(backbone=writer, predict={"data": live_stream(5)}))
    stored = open_stream(tmp_path)
    reader = UNetBackbone(tiny_pipeline, taps[1:], steps=4, tap_steps=(4,), both_branches=True)
    with torch.no_grad():
        every, third = (stored.complete(stored[[1, 4]], b).features.maps for b in (writer, reader))
    assert list(third) == ["mid_block"] and third["mid_block"].shape[1:3] == (1, 2)
    torch.testing.assert_close(third["mid_block"][:, 0, 1], every["mid_block"][:, 2, 0])
    other = UNetBackbone(tiny_pipeline, taps, steps=4, tap_steps=(1, 3))
    for refuse in (stored.check, lambda backbone: stored.complete(stored[[1]], backbone)):
        with pytest.raises(ValueError, match="timesteps 1, 251, 751, the backbone taps 1, 501"):
            refuse(other)


def test_another_vocabulary_or_split_is_refused(dataset):
    stream, voc = ShardStream(str(dataset)), Vocabulary.load("voc", "1")
    with pytest.raises(ValueError, match="made with the classes of vocabulary 'clipart'") as caught:
        stream.bind(voc)
    assert voc.digest in str(caught.value)
    assert Vocabulary.load("clipart").digest in str(caught.value)
    with pytest.raises(ValueError, match="'clipart', split '1'.*not 'clipart', split '2'"):
        ShardStream(str(dataset)).bind(Vocabulary.load("clipart", "2"))


def test_other_unseen_classes_of_a_split_are_refused(dataset, tmp_path):
    folder = shutil.copytree(dataset, tmp_path / "set")
    path = folder / "dataset.json"
    manifest = json.loads(path.read_text())
    assert len(manifest["vocabulary"]["unseen"]) == 5
    manifest["vocabulary"]["unseen"][0] = "sun"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="other unseen classes in split '1', sun, .* with$"):
        open_stream(folder)
    del manifest["vocabulary"]["unseen"]  # as in older datasets
    path.write_text(json.dumps(manifest))
    assert len(open_stream(folder)) == 10


def rewrite(dataset, folder, change):
    """Copy the dataset's first shard with ``change(members)`` applied to every sample."""
    stream = open_stream(dataset)
    path = folder / "shard-000000.tar"
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for position in range(4):
            members = encode_sample(stream.sample(position))
            change(members)
            tar.write(members)
    manifest = json.loads((dataset / "dataset.json").read_text())
    data = path.read_bytes()
    facts = {"samples": 4, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["shards"] = {path.name: facts}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return open_stream(folder)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def test_masks_with_foreign_ids_are_named(dataset, tmp_path):
    foreign = np.zeros((32, 32), np.uint8)
    foreign[0, :3] = (21, 200, 255)  # the vocabulary has 0..20
    stream = rewrite(dataset, tmp_path, lambda m: m.update({"mask.png": png(foreign)}))
    with pytest.raises(ValueError, match=r"sample 1 of .*shard-000000.tar.*\[21, 200\].*0\.\.20"):
        stream[[1]]


def test_masks_of_another_size_are_named(dataset, tmp_path):
    small = np.zeros((16, 32), np.uint8)
    stream = rewrite(dataset, tmp_path, lambda m: m.update({"mask.png": png(small)}))
    with pytest.raises(ValueError, match=r"sample 0 of .*shard-000000.tar.*\(16, 32\)"):
        stream[[0]]


def test_damaged_members_are_named(dataset, tmp_path):
    stream = rewrite(dataset, tmp_path, lambda m: m.update({"image.png": b"broken"}))
    with pytest.raises(ValueError, match=r"sample 3 of .*shard-000000.tar: it cannot be read"):
        stream[[3]]


def test_images_of_two_sizes_make_no_batch(dataset, tmp_path):
    def shrink(members):
        if members["__key__"] == "00000001":
            blank = np.zeros((16, 16), np.uint8)
            members.update({"mask.png": png(blank), "image.png": png(np.stack([blank] * 3, -1))})

    stream = rewrite(dataset, tmp_path, shrink)
    with pytest.raises(ValueError, match=r"images of \[\(16, 16\), \(32, 32\)\] pixels"):
        stream[[0, 1]]


def test_missing_folder_is_told_when_it_is_needed(tmp_path):
    stream = ShardStream(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no shards"):
        stream.bind(Vocabulary.load("clipart"))
