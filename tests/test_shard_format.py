"""One sample to the members of a tar and back, and the index of a tar."""

import io
import pickle
import tarfile

import numpy as np
import pytest
from webdataset import TarWriter

from ovseg.data.shard_format import (
    StoredSample,
    decode_sample,
    encode_sample,
    index_shard,
    shard_name,
)
from ovseg.structures import Entity, Request


def make_sample(index=3, **changes):
    random = np.random.default_rng(index)
    fields = {
        "request": Request(
            index, 77, "a photo of a fish", (Entity(4, "fish", (13, 17)),), "blurred"
        ),
        "image": random.integers(0, 256, (8, 12, 3), dtype=np.uint8),
        "mask": random.choice(np.array([0, 4, 255], np.uint8), (8, 12)),
        "latent": random.standard_normal((2, 4, 2, 3)).astype(np.float32),
        "timesteps": [21.0, 1.0],
        "found": [True],
        "scores": [0.25],
        "soft": random.random((1, 2, 3)).astype(np.float16),
        "instances": random.integers(0, 700, (8, 12)).astype(np.uint16),
    }
    return StoredSample(**{**fields, **changes})


def members_of(sample):
    return {k: v for k, v in encode_sample(sample).items() if k != "__key__"}


def write_shard(path, samples):
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
        for sample in samples:
            tar.write(encode_sample(sample))
    return path


def test_round_trip_is_exact():
    sample = make_sample()
    back = decode_sample(members_of(sample))
    assert back.request == sample.request
    for name in ("image", "mask", "latent", "soft", "instances"):
        there, here = getattr(sample, name), getattr(back, name)
        assert here.dtype == there.dtype and np.array_equal(here, there)
    assert (back.timesteps, back.found, back.scores) == ([21.0, 1.0], [True], [0.25])
    bare = decode_sample(members_of(make_sample(soft=None, instances=None)))
    assert bare.soft is None and bare.instances is None


def test_same_sample_same_bytes():
    assert encode_sample(make_sample()) == encode_sample(make_sample())
    assert encode_sample(make_sample())["__key__"] == "00000003"
    assert shard_name(12) == "shard-000012.tar"


def test_index_points_at_the_members(tmp_path):
    samples = [make_sample(index) for index in (5, 6, 7)]
    path = write_shard(tmp_path / "a.tar", samples)
    index = index_shard(path, 3)
    data = path.read_bytes()
    for sample, members in zip(samples, index, strict=True):
        cut = {ext: data[start : start + size] for ext, (start, size) in members.items()}
        assert cut == members_of(sample)


@pytest.mark.parametrize("keep", [0, 100, 700, 5000, -3000])
def test_cut_shards_are_named(tmp_path, keep):
    path = write_shard(tmp_path / "a.tar", [make_sample(index) for index in range(4)])
    data = path.read_bytes()
    path.write_bytes(data[:keep] if keep >= 0 else data[: len(data) + keep - 10240])
    with pytest.raises(ValueError, match="a.tar is damaged: delete it and run `predict` again"):
        index_shard(path, 4)


def test_wrong_files(tmp_path):
    with pytest.raises(ValueError, match="none.tar is missing: run `predict` again"):
        index_shard(tmp_path / "none.tar")
    path = write_shard(tmp_path / "a.tar", [make_sample()])
    with pytest.raises(ValueError, match="1 samples, not 2"):
        index_shard(path, 2)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(ValueError, match="0 samples"):
        index_shard(tmp_path / "empty.tar")
    (tmp_path / "text.tar").write_text("no tar at all" * 100)
    with pytest.raises(ValueError, match="text.tar is damaged"):
        index_shard(tmp_path / "text.tar")


def damaged(**members):
    return {**members_of(make_sample()), **{k.replace("_", "."): v for k, v in members.items()}}


def test_damaged_members_raise():
    members = members_of(make_sample())
    del members["mask.png"]
    with pytest.raises(ValueError, match="it has no mask.png"):
        decode_sample(members)
    for broken in (
        damaged(image_png=b"no picture"),
        damaged(image_png=members["image.png"][:60]),
        damaged(json=b"{"),
        damaged(json=b"{}"),
        damaged(latent_npy=b""),
        damaged(latent_npy=members["latent.npy"][:-4]),
    ):
        with pytest.raises(ValueError):
            decode_sample(broken)


def test_sizes_must_agree():
    other = members_of(make_sample(mask=np.zeros((8, 11), np.uint8)))
    with pytest.raises(ValueError, match=r"mask is uint8 of \(8, 11\), its image has \(8, 12\)"):
        decode_sample(other)


def test_images_are_rgb():
    grey = make_sample(image=np.zeros((8, 12), np.uint8))
    with pytest.raises(ValueError, match=r"image is uint8 of \(8, 12\), not uint8 \(H, W, 3\)"):
        decode_sample(members_of(grey))


def test_nothing_is_unpickled():
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    for data in (buffer.getvalue(), pickle.dumps(Bomb())):
        with pytest.raises(ValueError, match="allow_pickle=False|pickled"):
            decode_sample(damaged(latent_npy=data))
