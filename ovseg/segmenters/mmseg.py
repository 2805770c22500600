"""Any MMSegmentation model as a segmenter.

MMSegmentation builds the network, its heads and losses; normalisation, weights and logging are
handled here, because its own loader falls back to unsafe unpickling and its data preprocessor stays
on the CPU inside another module.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.embedded import locate
from ovseg.losses_segmentation import PixelLoss
from ovseg.segmenters.base import Segmenter
from ovseg.segmenters.mmseg_config import quiet, read_config
from ovseg.segmenters.mmseg_losses import leave_out_accuracy, replace_losses
from ovseg.segmenters.mmseg_weights import load_backbone, load_network
from ovseg.segmenters.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from ovseg.structures import IGNORE

EMBEDDED_BACKBONE = "backbone.safetensors"
UNBUILT = (KeyError, TypeError, AssertionError, AttributeError, ValueError)
COMPILED = re.compile(r"for (\w+) ops|'(DCN(?:v2)?)'")
"""How mmcv, or a config, names a compiled operator."""


class MMSegSegmenter(Segmenter):
    """A segmenter built from an MMSegmentation model configuration.

    The number of classes is set in every head, SyncBN becomes BN (the Trainer's `sync_batchnorm`
    brings it back), and cross-entropy averages over the pixels that are not ignored.

    Args:
        num_classes: Number of classes with background.
        model: Model dict as in MMSegmentation's configs (`type: EncoderDecoder` ...).
        config: Path of an MMSegmentation config file, instead of `model`.
        checkpoint: Weights of the whole network: safetensors, or a torch file of tensors, such as
            MMEngine's Runner writes. What a checkpoint of `fit` or a segmenter's folder says of its
            training goes to `learnt_from`.
        pretrained: Weights of the backbone alone: a file in the same formats, its URL, a name of
            MMEngine's table such as "open-mmlab://resnet50_v1c", or "clipart", the embedded ones of
            the clip-art world's segmenter.
        upscale: Factor by which the input is enlarged first (small images on a stride of 8).
        mean: RGB mean that is subtracted, in 0..255.
        std: RGB standard deviation that is divided by.
        loss: Loss of the label map in the place of every head's own, which keeps its weight.

    Raises:
        ValueError: If not exactly one of model and config is given, the network cannot be built, or
            weights do not fit it.
        FileNotFoundError: If a file does not exist.
    """

    def __init__(
        self,
        num_classes: int,
        model: dict[str, Any] | None = None,
        config: str | None = None,
        checkpoint: str | None = None,
        pretrained: str | None = None,
        upscale: int = 1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        loss: PixelLoss | None = None,
    ) -> None:
        super().__init__(num_classes)
        if (model is None) == (config is None):
            raise ValueError("give exactly one of model (a dict) and config (an mmseg config file)")
        if upscale < 1:
            raise ValueError(f"upscale must be an integer >= 1, got {upscale}")
        if config is not None:
            model = read_config(config).model
        cfg, dropped = _prepare(model, num_classes)
        self.init_args = {
            "model": cfg,
            "upscale": upscale,
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
        }
        self.upscale = upscale
        self.normalise = Normalise(mean, std)
        self.model = _build(cfg)
        leave_out_accuracy(self.model)
        if loss is not None:
            replace_losses(self.model, loss)
        if pretrained is not None:
            source = pretrained if "://" in pretrained else locate(pretrained, EMBEDDED_BACKBONE)
            self.learnt_from = load_backbone(self.model.backbone, str(source))
        if checkpoint is not None:
            self.learnt_from = load_network(self.model, checkpoint)
        if dropped and checkpoint is None and pretrained is None:
            warnings.warn(
                f"the config names pretrained weights ({', '.join(dropped)}), which are not "
                "fetched: give them, or their file, as `pretrained`, or train from scratch",
                stacklevel=2,
            )

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, 3, H, W)`` uint8 RGB to logits ``(B, N, H, W)``."""
        height, width = images.shape[-2:]
        inputs = self._inputs(images)
        test_cfg = self.model.test_cfg or {}
        # MMSegmentation resizes logits to img_shape: the original size, whatever the upscale.
        shape = (height, width)
        metas = [{"ori_shape": shape, "img_shape": shape, "pad_shape": shape} for _ in images]
        if test_cfg.get("mode", "whole") == "slide":
            for meta in metas:
                del meta["pad_shape"]
            logits = self.model.slide_inference(inputs, metas)
        else:
            logits = self.model.encode_decode(inputs, metas)
        if logits.shape[-2:] != images.shape[-2:]:
            logits = F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
        return logits

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of all heads' losses; ``labels (B, H, W)`` int64, 255 = ignore."""
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        shape = tuple(images.shape[-2:])
        samples = []
        for label in labels:
            sample = SegDataSample(metainfo={"img_shape": shape, "ori_shape": shape})
            sample.gt_sem_seg = PixelData(data=label[None])
            samples.append(sample)
        losses = self.model.loss(self._inputs(images), samples)
        return torch.stack(
            [
                part.mean()
                for name, value in losses.items()
                if "loss" in name
                for part in _parts(value)
            ]
        ).sum()

    def _inputs(self, images: Tensor) -> Tensor:
        inputs = self.normalise(images)
        if self.upscale > 1:
            inputs = F.interpolate(
                inputs, scale_factor=self.upscale, mode="bilinear", align_corners=False
            )
        return inputs


def _parts(value: Tensor | list[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _prepare(model: dict, num_classes: int) -> tuple[dict, list[str]]:
    """Copy a model dict with our changes; also return the pretrained weights that it named."""
    cfg = copy.deepcopy(dict(model))
    cfg.pop("data_preprocessor", None)
    for key in ("decode_head", "auxiliary_head"):
        heads = cfg.get(key) or []
        for head in heads if isinstance(heads, list | tuple) else [heads]:
            head["num_classes"] = num_classes
    dropped: list[str] = []
    cfg = _clean(cfg, dropped)
    return cfg, dropped


def _clean(node: Any, dropped: list[str]) -> Any:
    """Drop pretrained weights, turn SyncBN into BN, and make tuples lists, at any depth."""
    if isinstance(node, list | tuple):
        return [_clean(item, dropped) for item in node]
    if not isinstance(node, dict):
        return node
    clean = {}
    for key, value in node.items():
        if key == "pretrained":
            dropped.extend([str(value)] if value else [])
        elif key == "init_cfg" and isinstance(value, dict) and value.get("type") == "Pretrained":
            dropped.append(str(value.get("checkpoint")))
        elif key == "type" and value == "SyncBN":
            clean[key] = "BN"
        else:
            clean[key] = _clean(value, dropped)
    return clean


def _build(cfg: dict) -> nn.Module:
    """Build and initialise the network."""
    with quiet():
        from mmengine.config import ConfigDict
        from mmengine.registry import init_default_scope
        from mmseg.models.losses import CrossEntropyLoss
        from mmseg.registry import MODELS

        init_default_scope("mmseg")
        try:
            model = MODELS.build(ConfigDict(copy.deepcopy(cfg)))
        except (*UNBUILT, RuntimeError) as error:
            raise ValueError(_reason(error, cfg)) from error
        if not hasattr(model, "encode_decode"):
            raise ValueError(f"mmseg model {cfg.get('type')!r} is not an encoder-decoder")
        model.init_weights()
        for module in model.modules():
            if isinstance(module, CrossEntropyLoss):
                module.avg_non_ignore = True
            if getattr(module, "ignore_index", IGNORE) not in (IGNORE, -100):
                raise ValueError(f"heads must ignore label {IGNORE}, got {module.ignore_index}")
    return model


def _reason(error: Exception, cfg: dict) -> str:
    """Say in one line why MMSegmentation cannot build a network."""
    text = " ".join(str(error).split())
    missing = isinstance(error, RuntimeError) or "find None in registry" in text
    found = COMPILED.search(f"{text} {cfg}") if missing else None
    if found is None:
        return f"mmseg cannot build this model: {text}"
    return (
        f"this model needs a compiled operator of mmcv, {found[found.lastindex]}, which the "
        "installed mmcv does not have: `mim install onedl-mmcv --only-binary=onedl-mmcv`, or build "
        "mmcv from source, or take a model without it"
    )
