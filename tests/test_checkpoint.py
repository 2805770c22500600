"""ovseg.checkpoint: where a model of transformers lies, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_transformers as tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

from ovseg.checkpoint import Checkpoint


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(tiny.save(tiny.eomt, tmp_path / "model"))


def test_the_digest_follows_content_not_place(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    digest = Checkpoint(str(folder)).digest
    assert Checkpoint(str(copy)).digest == digest and len(digest) == 16
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert Checkpoint(str(copy)).digest != digest


def test_a_model_of_the_hub(folder, tmp_path, monkeypatch):
    import huggingface_hub

    snapshot = tmp_path / "snapshots" / "abc123"
    shutil.copytree(folder, snapshot)
    asked = []

    def download(repo, **options):
        asked.append((repo, options["revision"], options["local_files_only"]))
        assert not any("bin" in pattern for pattern in options["allow_patterns"])
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    facts = Checkpoint("owner/model", "main", True).describe()
    assert asked == [("owner/model", "main", True)]
    assert (facts["source"], facts["revision"]) == ("transformers:owner/model", "abc123")
    assert facts["licence"] is None and facts["digest"] == Checkpoint(str(folder)).digest


def test_what_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a folder or a Hub id"):
        Checkpoint("no such model")
    with pytest.raises(FileNotFoundError, match="no config.json"):
        Checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot load the AutoConfig of"):
        Checkpoint(str(tmp_path)).config  # noqa: B018


def test_half_a_model_and_pickled_weights_are_refused(folder):
    kind = AutoModelForUniversalSegmentation
    weights = folder / "model.safetensors"
    state = load_file(weights)
    body = {k: v for k, v in state.items() if not k.startswith("class_predictor")}
    save_file(body, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="2 of its tensors are missing, class_predictor.bias"):
        Checkpoint(str(folder)).model(kind)
    torch.save(state, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="cannot load the AutoModelForUniversalSegmentation"):
        Checkpoint(str(folder)).model(kind)


def test_statistics_are_weights_too_but_no_counters(tmp_path):
    folder, kind = (
        Path(tiny.save(tiny.segformer, tmp_path / "model")),
        AutoModelForSemanticSegmentation,
    )
    weights, norm = folder / "model.safetensors", "decode_head.batch_norm"
    state = load_file(weights)
    state[f"{norm}.running_mean"] += 5
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert len(old) == len(state) - 1
    save_file(old, weights, {"format": "pt"})  # as files of old versions of torch are
    model = Checkpoint(str(folder)).model(kind)
    assert torch.equal(model.decode_head.batch_norm.running_mean, state[f"{norm}.running_mean"])
    bare = {k: v for k, v in old.items() if "running" not in k}
    save_file(bare, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=f"2 of its tensors are missing, {norm}.running_mean"):
        Checkpoint(str(folder)).model(kind)
