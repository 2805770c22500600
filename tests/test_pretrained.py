"""ovseg.pretrained: what a file holds, what a card says."""

from __future__ import annotations

from ovseg import pretrained


def test_large_files_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_WHOLE", 100)
    monkeypatch.setattr(pretrained, "_CHUNK", 10)
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(6400))
    before = pretrained.content(path)
    path.write_bytes(b"\x01" + bytes(6399))
    assert pretrained.content(path) != before
    path.write_bytes(bytes(6401))
    assert pretrained.content(path) != before


def test_the_licence_of_a_card():
    assert pretrained.licence_in("---\ntags: [x]\nlicense: openrail\n---\n") == "openrail"
    assert pretrained.licence_in("# A model\nits license: none\n") is None
