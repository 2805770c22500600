"""What a training step of DeepLabv3+ costs: ours, a bare PyTorch loop, MMSegmentation's Runner.

    python benchmarks/training_step.py --out runs/benchmarks/training_step.json

A network with a ResNet-50 and the quickstart's narrow ResNet-18 take the same steps of SGD, from
the same weights, on the same batches, which lie ready in memory, in three ways that take turns:
*ours* is `SegmentationModule` in Lightning's Trainer, with its progress bar and the CSV log of
`ovseg fit`; *bare* is a loop of a dozen lines with `torch.nn.functional.cross_entropy`; *runner*
is MMEngine's `Runner` with MMSegmentation's preprocessor and hooks, and the accuracy that its heads
compute at every step. None writes checkpoints. SGD is in torch's fused form, as in
configs/segmentation/published_schedule.yaml; the Runner's is in torch's default form, as in
MMSegmentation's schedules, or with `--fused_runner` fused too.
Seconds are those from the end of the steps that warm up to the end of the last; afterwards all
weights must agree.
"""

from __future__ import annotations

import copy
import io
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
import yaml
from common import finish, parser, ratios, spread, wait
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from metric import label_maps
from torch import Tensor
from torch.utils.data import DataLoader

from ovseg.cli import quiet
from ovseg.modules.segmentation import SegmentationModule
from ovseg.segmenters.mmseg import MMSegSegmenter
from ovseg.segmenters.normalise import IMAGENET_MEAN, IMAGENET_STD
from ovseg.structures import IGNORE, Batch
from ovseg.vocabulary import Vocabulary

SETS = {
    "cpu": {"deeplabv3plus_r50": (2, 128, 8), "deeplabv3plus_small": (16, 128, 24)},
    "cuda": {"deeplabv3plus_r50": (16, 512, 8), "deeplabv3plus_small": (16, 128, 40)},
}
"""Images of a step, pixels of a side, measured steps of a round, by where it runs; the small one is
the quickstart's, which enlarges its 64 pixels to as many."""

WARM = 2
DEFAULT_SGD = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)
SGD = partial(DEFAULT_SGD, fused=True)
Batches = list[tuple[Tensor, Tensor]]


class Clock:
    """Seconds from the end of step `WARM` to the end of the last one."""

    def __init__(self, steps: int, device: str) -> None:
        self.marks, self.step, self.device = (WARM, WARM + steps), 0, device
        self.times: list[float] = []

    def tick(self) -> None:
        """Note the end of a step."""
        self.step += 1
        if self.step in self.marks:
            wait(self.device)
            self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """What has passed between the two marks."""
        first, last = self.times
        return last - first


class Ticks(Callback):
    """Tells a clock of Lightning's steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *arguments, **more) -> None:
        """Note the end of a step."""
        self.clock.tick()


def ours(segmenter: MMSegSegmenter, batches: Batches, clock: Clock, folder: str) -> None:
    """Train by `SegmentationModule`."""
    vocabulary = Vocabulary.load("voc")
    model = SegmentationModule(lambda classes: segmenter, SGD, vocabulary=vocabulary)
    ready = [
        Batch(indices=torch.arange(len(labels)), images=images, labels=labels)
        for images, labels in batches
    ]
    trainer = Trainer(
        accelerator="gpu" if clock.device.startswith("cuda") else "cpu",
        devices=1,
        max_steps=len(batches),
        logger=CSVLogger(folder, name="logs"),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[Ticks(clock)],
    )
    trainer.fit(model, DataLoader(ready, batch_size=None))


def bare(segmenter: MMSegSegmenter, batches: Batches, clock: Clock, folder: str) -> None:
    """Train by a loop."""
    network, device = segmenter.to(clock.device).train().model, clock.device
    heads = [(network.decode_head, 1.0)]
    if network.with_auxiliary_head:
        heads.append((network.auxiliary_head, network.auxiliary_head.loss_decode.loss_weight))
    optimizer = SGD(network.parameters())
    for images, labels in DataLoader(batches, batch_size=None):
        features = network.extract_feat(segmenter.normalise(images.to(device)))
        loss, labels = torch.zeros((), device=device), labels.to(device)
        for head, weight in heads:
            logits = F.interpolate(head(features), labels.shape[-2:], mode="bilinear")
            loss = loss + weight * F.cross_entropy(logits, labels, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.tick()


def runner(
    segmenter: MMSegSegmenter,
    batches: Batches,
    clock: Clock,
    folder: str,
    sgd: Callable[..., torch.optim.Optimizer] = DEFAULT_SGD,
) -> None:
    """Train by MMEngine's Runner."""
    from mmengine.hooks import Hook
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner
    from mmengine.structures import PixelData
    from mmseg.models import SegDataPreProcessor
    from mmseg.structures import SegDataSample

    class Tick(Hook):
        def after_train_iter(self, *arguments, **more) -> None:
            clock.tick()

    def sample(label: Tensor) -> SegDataSample:
        shape = tuple(label.shape)
        made = SegDataSample(metainfo={"img_shape": shape, "ori_shape": shape})
        made.gt_sem_seg = PixelData(data=label[None])
        return made

    init_default_scope("mmseg")
    network = segmenter.model
    for head in network.modules():
        vars(head).pop("loss_by_feat", None)  # mmseg's own, with its accuracy
    network.data_preprocessor = SegDataPreProcessor(
        IMAGENET_MEAN, IMAGENET_STD, size=tuple(batches[0][1].shape[-2:]), seg_pad_val=IGNORE
    )
    network.to(clock.device)
    ready = [
        {"inputs": list(images), "data_samples": [sample(label) for label in labels]}
        for images, labels in batches
    ]
    logger = {"type": "LoggerHook", "interval": 50}
    # it takes a GPU wherever there is one
    with patch("mmengine.runner.runner.get_device", lambda: clock.device):
        made = Runner(
            model=network,
            work_dir=folder,
            train_dataloader=DataLoader(ready, batch_size=None),
            train_cfg={"by_epoch": False, "max_iters": len(batches)},
            optim_wrapper={"type": "OptimWrapper", "optimizer": sgd(network.parameters())},
            default_hooks={"checkpoint": None, "sampler_seed": None, "logger": logger},
            custom_hooks=[{"type": Tick, "priority": "LOWEST"}],
            log_level="ERROR",
            experiment_name=Path(folder).name,
            randomness={"seed": 0},
        )
        made.train()


FORMS = {"ours": ours, "bare": bare, "runner": runner}


def batches_of(count: int, batch: int, size: int) -> Batches:
    """Return pictures of coloured blocks and their label maps ``(B, size, size)``, some ignored."""
    _, labels = label_maps(batch * count, size, size, "cpu")
    generator = torch.Generator().manual_seed(1)
    colors = torch.randint(0, 256, (IGNORE + 1, 3), generator=generator, dtype=torch.uint8)
    images = colors[labels].permute(0, 3, 1, 2).contiguous()
    return list(zip(images.split(batch), labels.split(batch), strict=True))


def train(form: str, segmenter: MMSegSegmenter, batches: Batches, device: str):
    """Train a copy; return seconds per step and the trained weights."""
    segmenter, clock = copy.deepcopy(segmenter), Clock(len(batches) - WARM, device)
    torch.manual_seed(0)
    silent = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(silent),
        redirect_stderr(silent),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        FORMS[form](segmenter, batches, clock, folder)
    return clock.seconds / (len(batches) - WARM), segmenter.model.state_dict()


def compare(weights: dict[str, dict[str, Tensor]], limit: float = 1e-3) -> float:
    """Return the largest difference of any weight; refuse to time forms that learn otherwise.

    Args:
        weights: By form.
        limit: Of a difference.
    """
    wanted, largest = weights["bare"], 0.0
    for form, found in weights.items():
        for key, value in wanted.items():
            difference = float((found[key].cpu().double() - value.cpu().double()).abs().max())
            if difference > limit:
                raise SystemExit(f"{form} has not learnt what bare has: {key} by {difference:.2g}")
            largest = max(largest, difference)
    return largest


def network_of(name: str) -> MMSegSegmenter:
    """Return a segmenter of `configs/segmenters`, which sees its input as large as it is."""
    torch.manual_seed(0)
    path = Path(__file__).parents[1] / "configs" / "segmenters" / f"{name}.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))["init_args"]["model"]
    for head in ("decode_head", "auxiliary_head"):
        if head in config:
            config[head]["dropout_ratio"] = 0.0  # its masks would depend on the calls before it
    return MMSegSegmenter(Vocabulary.load("voc").num_classes, model=config)


def measure(name: str, batch: int, size: int, steps: int, repeats: int, device: str) -> dict:
    """Train one network in all forms, in turns; the first round is not measured.

    Args:
        name: File of `configs/segmenters`.
        batch: Images of a step.
        size: Pixels of a side.
        steps: Steps of a round that are measured.
        repeats: Measured rounds.
        device: Where.
    """
    segmenter = network_of(name)
    batches = batches_of(WARM + steps, batch, size)
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for turn in range(repeats + 1):
        weights = {}
        for form, times in seconds.items():
            time_of_step, weights[form] = train(form, segmenter, batches, device)
            if turn:
                times.append(time_of_step)
        # a GPU's sums differ from run to run, and convolutions round to TF32
        difference = compare(weights, 1e-3 if torch.device(device).type == "cpu" else 1e-2)
    return {
        "parameters": sum(p.numel() for p in segmenter.parameters()),
        "batch": batch,
        "size": size,
        "steps": steps,
        "seconds_per_step": {form: spread(times) for form, times in seconds.items()},
        "ours_over_bare": ratios(seconds["ours"], seconds["bare"]),
        "runner_over_ours": ratios(seconds["runner"], seconds["ours"]),
        "largest_difference_of_weights": float(f"{difference:.2g}"),
    }


def main(argv: list[str] | None = None) -> dict:
    """Measure both sizes."""
    made = parser(__doc__.splitlines()[0], repeats=7)
    made.add_argument("--only", choices=sorted(SETS["cpu"]), help="one of the networks")
    made.add_argument("--fused_runner", action="store_true", help="the Runner's SGD is fused too")
    args = made.parse_args(argv)
    if args.fused_runner:
        FORMS["runner"] = partial(runner, sgd=SGD)
    if args.repeats < 1:
        raise SystemExit(f"repeats must be >= 1, got {args.repeats}")
    quiet()
    sets = SETS[torch.device(args.device).type]
    names = [args.only] if args.only else list(sets)
    found = {name: measure(name, *sets[name], args.repeats, args.device) for name in names}
    return finish("training_step", found, args.device, args.out)


if __name__ == "__main__":
    main()
