"""tools/import_grounder.py: the released weights become a grounder folder."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from test_released import CHANNELS, random_release

from ovseg import GroundedDiffusion
from ovseg.backbones.taps import SD1_TAPS
from ovseg.backbones.unet import UNetBackbone
from ovseg.grounders.folder import load_grounder, read_config

TOOL = Path(__file__).parents[1] / "tools" / "import_grounder.py"


@pytest.fixture(scope="module")
def sd_like(tiny_pipeline, tmp_path_factory) -> Path:
    """Make a tiny pipeline whose U-Net has the 25 blocks of Stable Diffusion 1.x."""
    from diffusers import UNet2DConditionModel

    folder = tmp_path_factory.mktemp("sd") / "pipeline"
    shutil.copytree(tiny_pipeline, folder)
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet")
    return folder


def config(path: Path, pipeline: Path, taps=SD1_TAPS) -> Path:
    backbone = {"model": str(pipeline), "taps": list(taps), "steps": 2, "both_branches": True}
    where = "ovseg.backbones.unet.UNetBackbone"
    data = {
        "backbone": {"class_path": where, "init_args": backbone},
        "vocabulary": "clipart",
        "split": "2",
    }
    path.write_text(yaml.safe_dump({"data": {"init_args": data}}))
    return path


def test_the_tool_writes_a_grounder_folder_that_works(sd_like, tmp_path, capsys):
    main = runpy.run_path(str(TOOL))["main"]
    taps = UNetBackbone(str(sd_like), list(SD1_TAPS)).feature_spec.taps.values()
    strides = dict(zip(CHANNELS, sorted({t.stride for t in taps}, reverse=True), strict=True))
    channels = {n: sum(t.channels for t in taps if t.stride == s) for n, s in strides.items()}
    widths = {"low": 16, "mid": 32, "high": 64, "highest": 128}
    state = random_release(channels, widths, 32, 512, 2048, 3, 4)
    torch.save({"state_dict": state}, tmp_path / "released.pth")
    settings = config(tmp_path / "c.yaml", sd_like)
    out = tmp_path / "out"
    assert main([str(tmp_path / "released.pth"), str(out), "--config", str(settings)]) == 0
    assert "from_pretrained" in capsys.readouterr().out
    saved = read_config(out)
    assert saved["init_args"]["norm"] == "instance" and saved["vocabulary"]["split"] == "2"
    loaded = load_grounder(out)
    assert torch.equal(loaded.to_query.weight, state["to_q.weight"])
    model = GroundedDiffusion.from_pretrained(out)
    assert set(model("a photo of a house", names=["house"], seed=1).masks) == {"house"}


def test_the_tool_refuses_in_one_line(sd_like, tiny_pipeline, tmp_path, capsys):
    main = runpy.run_path(str(TOOL))["main"]
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save({"x": Path("x")}, tmp_path / "pickled.pth")
    good = config(tmp_path / "good.yaml", sd_like)
    few = config(tmp_path / "few.yaml", tiny_pipeline, ["mid_block"])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("hello world\n")
    texts = {"word": "hello", "empty": "", "no_data": "data:", "broken": "data: ["}
    texts["no_backbone"] = "data: {init_args: {backbone: null, vocabulary: clipart}}"
    texts["odd"] = "data: {init_args: {backbone: 3, vocabulary: [1]}}"
    configs = {name: tmp_path / f"{name}.yaml" for name in texts}
    for name, text in texts.items():
        configs[name].write_text(text)
    for checkpoint, settings, line in (
        ("empty.pth", good, "empty.pth is no file of weights"),
        ("text.pth", good, "text.pth is no file of weights"),
        ("other.pth", configs["word"], "word.yaml names no data.init_args"),
        ("other.pth", configs["empty"], "empty.yaml names no data.init_args"),
        ("other.pth", configs["no_data"], "no_data.yaml names no data.init_args"),
        ("other.pth", configs["no_backbone"], "no_backbone.yaml names no data.init_args"),
        ("other.pth", configs["broken"], "broken.yaml is no YAML"),
        ("other.pth", configs["odd"], "no vocabulary '[1]'"),
        ("absent.pth", good, "no file"),
        ("other.pth", tmp_path / "absent.yaml", "no file"),
        ("other.pth", few, "reads the 25 blocks"),
        ("other.pth", good, "to_k.weight is missing"),
        ("pickled.pth", good, "holds pickled objects"),
    ):
        out = tmp_path / "out"
        assert main([str(tmp_path / checkpoint), str(out), "--config", str(settings)]) == 2
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1, error
        assert not out.exists()
