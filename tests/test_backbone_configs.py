"""configs/backbones: a file over a stage of Stable Diffusion 1.5 leaves nothing of that model."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ovseg.__main__ import main

CONFIGS = Path(__file__).parents[1] / "configs"
BACKBONES = sorted((CONFIGS / "backbones").glob("*.yaml"))
FOLDERS = ("annotated", "grounding", "synthetic")


def said(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


STAGES = [
    path
    for folder in FOLDERS
    for path in sorted((CONFIGS / folder).glob("*sd15*.yaml"))
    if "class_path" in said(path).get("model", {})  # a whole stage, no layer
]
PHOTOGRAPHS = CONFIGS / "annotated" / "voc_sd15_photographs.yaml"
ATTENTION = CONFIGS / "grounding" / "voc_sd15_attention.yaml"


@pytest.fixture
def parsed(capfd):
    """Return a function that parses layers and returns the backbone."""

    def parse(*layers: Path) -> dict:
        flags = {"backbones": "--data.init_args.backbone"}
        given = [word for p in layers for word in (flags.get(p.parent.name, "--config"), str(p))]
        with pytest.raises(SystemExit) as left:
            main(["fit", *given, "--print_config"])
        printed = capfd.readouterr()
        assert left.value.code == 0, printed.err
        return yaml.safe_load(printed.out)["data"]["init_args"]["backbone"]

    return parse


@pytest.fixture
def bare(tmp_path) -> Path:
    """A stage without a backbone."""
    stage = said(CONFIGS / "annotated" / "voc_sd15.yaml")
    del stage["data"]["init_args"]["backbone"]
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump(stage))
    return path


@pytest.mark.parametrize("path", BACKBONES, ids=lambda path: path.stem)
def test_a_file_over_a_stage_is_the_file_alone(path, parsed, bare):
    alone = parsed(bare, path)
    assert len(STAGES) >= 7
    for stage in STAGES:
        assert parsed(stage, path) == alone, stage
    for other in BACKBONES[:: len(BACKBONES) - 1]:  # a transformer's and a U-Net's
        assert parsed(bare, other, path) == alone, other


def test_files_of_one_class_say_the_same_keys():
    keys = {}
    for path in BACKBONES:
        keys.setdefault(said(path)["class_path"], {})[path.stem] = set(said(path)["init_args"])
    unet, mmdit = (keys[f"ovseg.backbones.{name}Backbone"] for name in ("unet.UNet", "mmdit.MMDiT"))
    assert len(unet) + len(mmdit) == len(BACKBONES)
    assert all(found == unet["sd15"] for found in unet.values())
    assert all(found == unet["sd15"] - {"probes"} for found in mmdit.values())


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_what_a_layer_needs_of_the_backbone_is_kept(name, parsed):
    path = CONFIGS / "backbones" / f"{name}.yaml"
    stage = PHOTOGRAPHS.with_name("voc_sd15.yaml")
    for layers in ((stage, path, PHOTOGRAPHS), (stage, PHOTOGRAPHS, path)):
        assert parsed(*layers)["init_args"]["inversion_steps"] == 50
    found = parsed(ATTENTION.with_name("voc_sd15_fusion.yaml"), path, ATTENTION)
    assert found["init_args"]["attention"] == ["down_blocks", "mid_block", "up_blocks"]
    assert found["init_args"]["model"] == said(path)["init_args"]["model"]
