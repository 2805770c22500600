"""ovseg.segmenters.mmseg_config: what a config file of MMSegmentation says of images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from tiny_mmseg import MEAN, PREPROCESSOR, STD, config, fcn

from ovseg.segmenters.mmseg_config import normalisation, quiet, read_config

IMAGENET = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}


@pytest.mark.parametrize(
    "name",
    [
        "deeplabv3plus/deeplabv3plus_r101-d8_4xb4-20k_voc12aug-512x512.py",
        "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
        "fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py",
    ],
)
def test_published_configurations_normalise_as_imagenet(name):
    import mmseg

    found = read_config(Path(mmseg.__file__).parent / ".mim/configs" / name)
    assert normalisation(found.preprocessor) == IMAGENET
    assert "data_preprocessor" not in found.model


def test_processes_on_the_cpu_may_be_more_than_gpus(monkeypatch):
    from mmengine.logging import MMLogger

    monkeypatch.setattr(MMLogger, "_instance_dict", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with quiet():
        assert list(MMLogger._instance_dict) == ["mmengine"]
    assert os.environ["LOCAL_RANK"] == "1"


def test_every_kind_of_file_says_the_same(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"model": fcn()}))
    top = f"model = {fcn(preprocessor=None)!r}\ndata_preprocessor = {PREPROCESSOR!r}\n"
    (tmp_path / "top.py").write_text(top)  # where the Runner looks for it too
    kinds = [config(tmp_path / name, fcn()) for name in ("c.py", "c.yaml")]
    for path in (*kinds, tmp_path / "c.json", tmp_path / "top.py"):
        found = read_config(path)
        assert normalisation(found.preprocessor) == {"mean": MEAN, "std": STD}
        assert found.model["decode_head"]["num_classes"] == 21


def test_none_at_all_and_one_that_does_not_normalise():
    assert normalisation({}) == {}
    assert normalisation({"bgr_to_rgb": True}) == {"mean": [0, 0, 0], "std": [1, 1, 1]}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"bgr_to_rgb": False}, "must have bgr_to_rgb: true.* got bgr_to_rgb: False, rgb_to_bgr"),
        ({"rgb_to_bgr": True}, "got bgr_to_rgb: True, rgb_to_bgr: True"),
        ({"type": "Other"}, "must be a SegDataPreProcessor, got Other"),
        ({"std": None}, "must give mean and std, or neither, got mean .*, std None"),
        ({"test_cfg": {"size_divisor": 32}}, "pads images by a test_cfg"),
    ],
)
def test_what_else_a_preprocessor_does_is_refused(change, line):
    with pytest.raises(ValueError, match=line) as raised:
        normalisation(PREPROCESSOR | change)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path):
    wrong = tmp_path / "wrong.py"
    for content, line in (
        ("model = (\n", "wrong.py cannot be read: SyntaxError"),
        ("model = missing\n", "wrong.py cannot be read: NameError"),
        ("x = 1\n", "has no `model`"),
        (f"model = {fcn(preprocessor={'size_divisor': 32})!r}", "pads to a size_divisor"),
    ):
        wrong.write_text(content)
        with pytest.raises(ValueError, match=line):
            read_config(wrong)
    with pytest.raises(FileNotFoundError, match="no mmseg config file"):
        read_config(tmp_path / "absent.py")
