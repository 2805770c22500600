"""ovseg.backbones.files: folders and the Hub, and the digest of what lies there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ovseg.backbones.files import PipelineFiles


@pytest.fixture
def copy(tiny_pipeline, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))


def test_digest_follows_content_not_place_or_version(tiny_pipeline, copy):
    digest = PipelineFiles(tiny_pipeline).digest
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_diffusers_version": "9"}))
    assert PipelineFiles(str(copy)).digest == digest
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert PipelineFiles(str(copy)).digest != digest


def test_digest_counts_the_files_of_the_variant(tiny_pipeline, copy):
    digest = PipelineFiles(tiny_pipeline).digest
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert PipelineFiles(str(copy)).digest == digest
    assert PipelineFiles(str(copy), variant="fp16").digest != digest


def test_what_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*; give one, a Hub id"):
        PipelineFiles("no such model").digest  # noqa: B018
    with pytest.raises(FileNotFoundError, match="no model_index.json"):
        PipelineFiles(str(tmp_path)).digest  # noqa: B018


def test_broken_files(copy):
    files = PipelineFiles(str(copy))
    (copy / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="unet/config.json of the model .* is no JSON"):
        files.config("unet/config.json")
    with pytest.raises(FileNotFoundError, match="has no file x.json: no /.*/x.json$"):
        files.config("x.json")
    with pytest.raises(ValueError, match="has no safety_checker of diffusers or transformers"):
        files.load("safety_checker")
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot load vae of the model"):
        files.load("vae", torch.float32)


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_weights_that_are_cut_off(part, copy):
    (weights,) = (copy / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f"cannot load {part} of the model"):
        PipelineFiles(str(copy)).load(part, torch.float32)


def test_pickled_weights_are_refused(copy):
    from safetensors.torch import load_file

    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="cannot load vae"):
        PipelineFiles(str(copy)).load("vae", torch.float32)


def test_a_model_of_another_kind(copy):
    from ovseg.backbones.mmdit import MMDiTConfig
    from ovseg.backbones.unet import UNetConfig

    with pytest.raises(ValueError, match="is a StableDiffusionPipeline; MMDiTBackbone takes"):
        MMDiTConfig(PipelineFiles(str(copy))).denoiser  # noqa: B018
    index = json.loads((copy / "model_index.json").read_text())
    index |= {"_class_name": "FluxPipeline", "unet": [None, None]}
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is a FluxPipeline; UNetBackbone takes"):
        UNetConfig(PipelineFiles(str(copy))).image_size  # noqa: B018


def test_parts_of_no_known_class(copy):
    from ovseg.backbones.unet import UNetConfig

    index = copy / "model_index.json"
    parts = json.loads(index.read_text()) | {"vae": ["diffusers", "AutoencoderNope"]}
    index.write_text(json.dumps(parts))
    with pytest.raises(ValueError, match="wants the class 'AutoencoderNope' of diffusers; diff"):
        PipelineFiles(str(copy)).load("vae", torch.float32)
    config = copy / "unet" / "config.json"
    for name in ("NopeUNet", None):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": name}))
        with pytest.raises(ValueError, match=f"wants the class {name!r} of diffusers; diffusers"):
            UNetConfig(PipelineFiles(str(copy))).denoiser  # noqa: B018


def test_the_hub_is_asked_for_single_files(tiny_pipeline, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    snapshot = tmp_path / "snapshots" / "mine" / "snapshots" / "abc123"
    shutil.copytree(tiny_pipeline, snapshot)
    (snapshot / "README.md").write_text("---\nlicense: openrail\n---\n")

    def download(model, name, revision, local_files_only):
        asked.append((model, name, revision, local_files_only))
        if not (snapshot / name).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(f"404 {name}\nand more")
        return str(snapshot / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    files = PipelineFiles("owner/model", revision="main", local_files_only=True)
    assert files.commit == "abc123" and files.licence == "openrail"
    assert asked[0] == ("owner/model", "model_index.json", "main", True)
    assert files.config("unet/config.json") and files.index
    assert {revision for _, _, revision, _ in asked[1:]} == {"abc123"}  # though main may move on
    loaded = {}
    monkeypatch.setattr(files, "kind", lambda library, name: SimpleNamespace(**loading))
    loading = {"from_pretrained": lambda model, **options: loaded.update(options)}
    files.load("unet", torch.float32)
    assert loaded["revision"] == "abc123" and loaded["local_files_only"]
    other = PipelineFiles("owner/other", revision="main", local_files_only=True)
    assert files.digest != other.digest
    with pytest.raises(
        FileNotFoundError, match="cannot find x.json .* the Hub was not to be asked$"
    ):
        files.path("x.json")
