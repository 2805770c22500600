"""What a training step on fresh images costs, the next batch made ahead on a GPU or not.

    python benchmarks/live.py --device cuda --out runs/benchmarks/live.json

Stage 2 samples the images that it trains on (`LiveStream`), annotates them and trains our grounding
module, in Lightning's Trainer; `data.init_args.ahead` is on and off in turns. Seconds are those
from the end of the steps that warm up to the end of the last. The two see the same batches. Where
there is no GPU nothing is made ahead, and both are the same.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path

import random_models
import torch
from common import finish, parser, ratios, spread
from grounding_cost import options_of, probe
from lightning.pytorch import Trainer
from training_step import WARM, Clock, Ticks

from ovseg.annotators.mmseg import MMSegAnnotator
from ovseg.backbones.configured import DTYPES
from ovseg.backbones.unet import UNetBackbone
from ovseg.cli import quiet
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.live import LiveStream
from ovseg.data.prompts import TemplatePrompts
from ovseg.embedded import EMBEDDED
from ovseg.modules.grounding import GroundingModule


def train(backbone: UNetBackbone, ahead: bool, arguments: Namespace) -> float:
    """Train a new grounding module; return seconds per step."""
    steps = WARM + arguments.measured
    stream = LiveStream(
        TemplatePrompts(objects={1: 1, 2: 2}, classes="seen"),
        MMSegAnnotator(EMBEDDED, classes="seen"),
        size=arguments.batch * steps,
        seed=1,
    )
    data = SyntheticDataModule(
        "clipart", batch_size=arguments.batch, backbone=backbone, train=stream, ahead=ahead
    )
    module = GroundingModule(
        probe,
        partial(torch.optim.AdamW, lr=1e-3),
        feature_spec=backbone.feature_spec,
        text_width=backbone.text_width,
        vocabulary=data.vocabulary,
    )
    clock = Clock(arguments.measured, arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            accelerator="gpu" if arguments.device.startswith("cuda") else "cpu",
            devices=1,
            precision=arguments.precision,
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=folder,
            callbacks=[Ticks(clock)],
        ).fit(module, data)
    return clock.seconds / arguments.measured


def main(argv: list[str] | None = None) -> dict:
    """Run the benchmark."""
    made = parser(__doc__.splitlines()[0], repeats=5)
    made.add_argument("--size", choices=[EMBEDDED, *random_models.MODELS], default=EMBEDDED)
    made.add_argument("--model", help="folder or Hub id; random weights of the size if left out")
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--steps", type=int, default=8, help="sampling steps")
    made.add_argument("--measured", type=int, default=10, help="training steps of a round")
    made.add_argument("--dtype", choices=DTYPES, default="auto")
    made.add_argument("--precision", default="32-true", help="of the grounding module")
    arguments = made.parse_args(argv)
    arguments.compile = None
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.size != EMBEDDED and arguments.model is None:
            arguments.model = random_models.save(random_models.MODELS[arguments.size], Path(folder))
        backbone = UNetBackbone(**options_of(arguments)).to(arguments.device)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(arguments.repeats + 1):
            for ahead, times in seconds.items():
                taken = train(backbone, ahead, arguments)
                if turn:
                    times.append(taken)
    facts = ("size", "model", "batch", "steps", "measured", "dtype", "precision")
    result = {name: getattr(arguments, name) for name in facts} | {
        "seconds_per_step": {
            "ahead": spread(seconds[True]),
            "when due": spread(seconds[False]),
        },
        "times_faster": ratios(seconds[False], seconds[True]),
    }
    return finish("live", result, arguments.device, arguments.out)


if __name__ == "__main__":
    main()
