"""ovseg.pretrained: what a file holds, what a card says."""

from __future__ import annotations

import hashlib
import os

from ovseg import pretrained


def test_every_byte_of_a_large_file_counts(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(80 << 20)
    before = pretrained.content(path)
    assert before == hashlib.sha256(str(80 << 20).encode() + bytes(80 << 20)).digest()
    with path.open("r+b") as file:
        file.seek((1 << 20) + 1000)
        file.write(b"\x01")
    assert pretrained.content(path) != before


def test_a_file_is_hashed_once_until_it_is_written_again(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    before = pretrained.content(path)
    assert before == hashlib.sha256(b"3one").digest()
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert pretrained.content(path) == before
    os.utime(path, ns=(2, 2))
    assert pretrained.content(path) == hashlib.sha256(b"3two").digest()


def test_the_licence_of_a_card():
    assert pretrained.licence_in("---\ntags: [x]\nlicense: openrail\n---\n") == "openrail"
    assert pretrained.licence_in("# A model\nits license: none\n") is None
