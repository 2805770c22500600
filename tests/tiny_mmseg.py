"""A tiny FCN of MMSegmentation: its config, its training by MMEngine's Runner, its predictions."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
import yaml

from ovseg.errors import importing_mmseg

SIZE = (32, 48)
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]  # not ImageNet's
PREPROCESSOR = {
    "type": "SegDataPreProcessor",
    "mean": MEAN,
    "std": STD,
    "bgr_to_rgb": True,
    "size": SIZE,
}


def head(classes: int, channels: int, index: int, std: float = 1.0) -> dict:
    """Return an FCN head whose classifier says different things in different places."""
    return {
        "type": "FCNHead",
        "in_channels": channels,
        "in_index": index,
        "channels": 6,
        "num_convs": 1,
        "concat_input": False,
        "num_classes": classes,
        "norm_cfg": {"type": "BN"},
        "init_cfg": {"type": "Normal", "std": std, "override": {"name": "conv_seg"}},
    }


def fcn(classes: int = 21, preprocessor: dict | None = PREPROCESSOR) -> dict:
    backbone = {
        "type": "ResNetV1c",
        "depth": 18,
        "base_channels": 8,
        "stem_channels": 8,
        "num_stages": 2,
        "strides": [1, 1],
        "dilations": [1, 2],
        "out_indices": [0, 1],
        "norm_cfg": {"type": "BN"},
    }
    parts = {"backbone": backbone, "decode_head": head(classes, 16, 1)}
    parts |= {"auxiliary_head": head(classes, 8, 0), "test_cfg": {"mode": "whole"}}
    given = {} if preprocessor is None else {"data_preprocessor": preprocessor}
    return copy.deepcopy({"type": "EncoderDecoder", "pretrained": "somewhere", **parts, **given})


def config(path: Path, model: dict) -> str:
    path.write_text(
        f"model = {model!r}\n" if path.suffix == ".py" else yaml.safe_dump({"model": model})
    )
    return str(path)


class Noise(torch.utils.data.Dataset):
    """Images and label maps of chance, with what MMSegmentation says of VOC."""

    def __init__(self, metainfo: dict) -> None:
        self.metainfo = metainfo

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        generator = torch.Generator().manual_seed(index)
        sample = SegDataSample(metainfo={"img_shape": SIZE, "ori_shape": SIZE})
        sample.gt_sem_seg = PixelData(data=torch.randint(21, (1, *SIZE), generator=generator))
        image = torch.randint(256, (3, *SIZE), dtype=torch.uint8, generator=generator)
        return {"inputs": image, "data_samples": sample}


def train(folder: Path) -> Path:
    """Train the FCN for two steps as MMSegmentation does, and return the Runner's checkpoint."""
    with importing_mmseg():
        from mmengine.runner import Runner
        from mmseg.datasets import PascalVOCDataset
    model = fcn() | {"pretrained": None, "train_cfg": {}}
    loader = {"dataset": Noise(PascalVOCDataset.METAINFO), "batch_size": 2, "num_workers": 0}
    loader |= {"sampler": {"type": "InfiniteSampler"}, "collate_fn": {"type": "pseudo_collate"}}
    hooks = {
        "logger": {"type": "LoggerHook", "interval": 1},
        "checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 2},
    }
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        runner = Runner(
            model=model,
            work_dir=str(folder),
            train_dataloader=loader,
            train_cfg={"type": "IterBasedTrainLoop", "max_iters": 2},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9}},
            param_scheduler=[{"type": "PolyLR", "power": 0.9, "end": 2, "by_epoch": False}],
            default_hooks=hooks,
            randomness={"seed": 1},
            default_scope="mmseg",
            log_level="ERROR",
        )
        runner.train()
    for handler in list(runner.logger.handlers):  # its log file
        runner.logger.removeHandler(handler)
        handler.close()
    return folder / "iter_2.pth"


def of_mmseg(state: dict, image: torch.Tensor, preprocessor: dict = PREPROCESSOR) -> torch.Tensor:
    """Return the label map that MMSegmentation predicts of an RGB image, which it takes as BGR."""
    with importing_mmseg():
        from mmengine.config import ConfigDict
        from mmseg.registry import MODELS
        from mmseg.structures import SegDataSample
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ConfigDict(fcn(preprocessor=preprocessor) | {"pretrained": None})
        network = MODELS.build(model).eval()
    network.load_state_dict(state)
    sample = SegDataSample(metainfo={"img_shape": SIZE, "ori_shape": SIZE})
    with torch.no_grad():
        found = network.test_step({"inputs": [image.flip(0)], "data_samples": [sample]})
    return found[0].pred_sem_seg.data[0]
