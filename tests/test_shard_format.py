"""One sample to the members of a tar and back."""

import io
import json
import pickle

import numpy as np
import pytest

from ovseg.data.shard_format import (
    SINCE_2,
    Record,
    StoredSample,
    decode_record,
    decode_sample,
    encode_sample,
)
from ovseg.quality import Facts
from ovseg.structures import Entity, Request

FACTS = Facts("fish", True, 0.25, 0.125, 2, 0.5, True, None)


def make_sample(index=3, **changes):
    random = np.random.default_rng(index)
    asked = Request(index, 77, "a photo of a fish", (Entity(4, "fish", (13, 17)),), "blurred")
    fields = {
        "record": Record(asked, [FACTS], [21.0, 1.0], ["area 0.125 < 0.2"]),
        "image": random.integers(0, 256, (8, 12, 3), dtype=np.uint8),
        "mask": random.choice(np.array([0, 4, 255], np.uint8), (8, 12)),
        "latent": random.standard_normal((2, 4, 2, 3)).astype(np.float32),
        "soft": random.random((1, 2, 3)).astype(np.float16),
        "instances": random.integers(0, 700, (8, 12)).astype(np.uint16),
    }
    return StoredSample(**{**fields, **changes})


def members_of(sample):
    return {k: v for k, v in encode_sample(sample).items() if k != "__key__"}


def test_round_trip_is_exact():
    sample = make_sample()
    back = decode_sample(members_of(sample))
    assert back.record == sample.record and back.found == [True]
    for name in ("image", "mask", "latent", "soft", "instances"):
        there, here = getattr(sample, name), getattr(back, name)
        assert here.dtype == there.dtype and np.array_equal(here, there)
    bare = decode_sample(members_of(make_sample(soft=None, instances=None)))
    assert bare.soft is None and bare.instances is None


def test_same_sample_same_bytes():
    assert encode_sample(make_sample()) == encode_sample(make_sample())
    assert encode_sample(make_sample())["__key__"] == "00000003"


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
        damaged(latent_npy=members["latent.npy"].replace(b"'descr'", b"'descr\x7f")),
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


def without(*names, **changes):
    stored = json.loads(members_of(make_sample())["json"]) | changes
    return json.dumps({key: value for key, value in stored.items() if key not in names}).encode()


def test_a_field_that_is_missing_is_named():
    stored = json.loads(members_of(make_sample())["json"])
    for name in stored.keys() - {"agreement", "clip"}:
        with pytest.raises(ValueError, match=f"^it has no field '{name}'$"):
            decode_record(without(name))
    assert decode_record(without("agreement", "clip")).facts[0].clip is None
    old = decode_record(without("agreement", "clip", *SINCE_2))  # format 1
    assert old.facts[0].area is None and old.facts[0].score == 0.25 and old.verdict == [""]


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"3", without(names=3), without(starts=[1, 2]), without(found=None)]
)
def test_what_is_no_record_is_refused(data):
    with pytest.raises(ValueError):
        decode_record(data)
