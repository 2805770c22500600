"""What masks cost on top of images: grounded sampling against the diffusers pipeline alone.

    python benchmarks/grounding_cost.py --out runs/benchmarks/grounding_cost.json
    python benchmarks/grounding_cost.py --size sd15 --device cuda --dtype bfloat16 --compile

Both sides start from the same prompts and seeds and end with the same PIL images; they take turns.
Ours reads taps and probes at the last step and makes masks of two names per image, by a grounding
module with random weights. As the cost is a small difference of large numbers, its parts are timed
too: a tapped call of the U-Net, less a plain one, and the masks, over the pipeline's 50 steps; with
fewer ``--steps`` the missing ones are added as plain calls. Peak memory is that of a fresh process
per side, weights included: all that it held on CPU, the allocator's own count on a GPU.
"""

from __future__ import annotations

import resource
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import random_models
import torch
import yaml
from common import finish, interleave, parser, ratios, spread
from diffusers import DiffusionPipeline
from PIL import Image

from ovseg.backbones.configured import DTYPES
from ovseg.backbones.files import PARTS, PipelineFiles, quiet
from ovseg.backbones.schedule import build_scheduler
from ovseg.backbones.unet import UNetBackbone
from ovseg.embedded import EMBEDDED
from ovseg.grounders.base import Grounder
from ovseg.grounders.folder import read_config
from ovseg.grounders.fusion import FusionGrounder
from ovseg.grounders.maps import groups_by_stride
from ovseg.grounders.probe import ProbeGrounder
from ovseg.pipeline import GroundedDiffusion
from ovseg.structures import Entity, FeatureSpec, Request

PROMPT, NAMES = "a photo of a house and a fish", ["house", "fish"]
CONFIGS = Path(__file__).parents[1] / "configs" / "backbones"

PAPER_STEPS = 50

Side = Callable[[int], list[Image.Image]]
"""Makes a batch of so many images."""


def probe(spec: FeatureSpec, text_width: int) -> ProbeGrounder:
    """Return our grounding module."""
    return ProbeGrounder(spec, text_width, (32, 32, 48, 48)[: len(groups_by_stride(spec))])


def fusion(spec: FeatureSpec, text_width: int) -> FusionGrounder:
    """Return the paper's grounding module."""
    return FusionGrounder(spec, text_width, (16, 32, 64, 128)[-len(groups_by_stride(spec)) :])


HEADS: dict[str, Callable[[FeatureSpec, int], Grounder]] = {"probe": probe, "fusion": fusion}


def options_of(arguments: Namespace) -> dict[str, Any]:
    """Return the backbone's arguments: those that ovseg ships for this size, and what was asked."""
    if arguments.size == EMBEDDED:
        shipped = read_config(EMBEDDED)["backbone"]["init_args"]
    else:
        text = (CONFIGS / f"{arguments.size}.yaml").read_text(encoding="utf-8")
        shipped = yaml.safe_load(text)["init_args"]
    model = arguments.model or shipped["model"]
    if model != shipped["model"]:
        shipped |= {"revision": None, "variant": None}
    compiled = {"backend": arguments.compile} if arguments.compile else False
    chosen = {"steps": arguments.steps, "dtype": arguments.dtype, "compile": compiled}
    return {**shipped, "model": model, **chosen}


def build(options: dict[str, Any], arguments: Namespace) -> GroundedDiffusion:
    """Return ours, with a random grounding module."""
    backbone = UNetBackbone(**options)
    torch.manual_seed(0)
    head = HEADS[arguments.head](backbone.feature_spec, backbone.text_width)
    return GroundedDiffusion(backbone, head).to(arguments.device)


def images_of(model: GroundedDiffusion, batch: int) -> list[Image.Image]:
    """Make images and masks."""
    return model([PROMPT] * batch, NAMES).images


def grounded(options: dict[str, Any], arguments: Namespace) -> Side:
    """Return our side: images and masks."""
    return partial(images_of, build(options, arguments))


def alone(options: dict[str, Any], arguments: Namespace) -> Side:
    """Return diffusers' own pipeline: images."""
    files = PipelineFiles(options["model"], options.get("revision"), options.get("variant"))
    dtype = DTYPES[options["dtype"]]
    parts = {
        p: files.load(p, None if "tokenizer" in p else dtype) for p in filter(files.has, PARTS)
    }
    if "safety_checker" in files.index:
        parts["safety_checker"] = None
    with quiet():
        pipeline = DiffusionPipeline.from_pretrained(
            str(files.folder or files.model), revision=files.revision, **parts
        ).to(arguments.device)
    pipeline.set_progress_bar_config(disable=True)
    config = files.config("scheduler/scheduler_config.json")
    pipeline.scheduler = build_scheduler(config, options.get("scheduler"), options["steps"])
    if options["compile"]:
        pipeline.unet.compile(**options["compile"])

    def sample(batch: int) -> list[Image.Image]:
        return pipeline(
            [PROMPT] * batch,
            num_inference_steps=options["steps"],
            guidance_scale=options["guidance_scale"],
            generator=[torch.Generator().manual_seed(seed) for seed in range(batch)],
        ).images

    return sample


SIDES = {"pipeline": alone, "grounded": grounded}


def peak(side: str, options: dict[str, Any], arguments: Namespace, batch: int) -> float:
    """Return the most MB that this process held while it made one batch."""
    SIDES[side](options, arguments)(batch)
    if torch.device(arguments.device).type == "cuda":
        return torch.cuda.max_memory_allocated(arguments.device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_child(work: Callable[..., Any], *given: Any) -> Any:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def parts(model: GroundedDiffusion, batch: int) -> dict[str, Callable[[], Any]]:
    """Return a plain call of the U-Net under guidance, a tapped one, and the masks."""
    backbone = model.backbone
    spans = [(start := PROMPT.index(name), start + len(name)) for name in NAMES]
    entities = tuple(Entity(0, name, span) for name, span in zip(NAMES, spans, strict=True))
    requests = [Request(i, i, PROMPT, entities) for i in range(batch)]
    sample = backbone.sample(requests)
    latents = sample.latents[:, 0].to(backbone.dtype)
    with torch.no_grad():
        call = (latents, sample.timesteps[0].to(backbone.device), backbone._encode(requests, 2), 2)
    work = {
        "plain call": partial(backbone._reader.call, *call),
        "tapped call": partial(backbone._reader.read, *call),
        "masks": lambda: model.grounder(sample.features, sample.entities).sigmoid(),
    }
    return {name: torch.no_grad()(one) for name, one in work.items()}


def percent(seconds: dict[str, list[float]], steps: int) -> list[float]:
    """Return, for each round, the cost of grounding in percent of the pipeline's 50 steps."""
    rows = zip(
        *(seconds[n] for n in ("pipeline", "plain call", "tapped call", "masks")), strict=True
    )
    return [
        100 * (tapped - plain + masks) / (pipeline + (PAPER_STEPS - steps) * plain)
        for pipeline, plain, tapped, masks in rows
    ]


def compare(
    batch: int, pipeline: Side, model: GroundedDiffusion, arguments: Namespace
) -> dict[str, Any]:
    """Time both sides and the parts at one batch size."""
    cases = {
        "pipeline": partial(pipeline, batch),
        "grounded": partial(images_of, model, batch),
        **parts(model, batch),
    }
    seconds = interleave(cases, arguments.repeats, arguments.device)
    return {
        "seconds": {name: spread(times) for name, times in seconds.items()},
        "images_per_second": {side: spread([batch / t for t in seconds[side]]) for side in SIDES},
        "grounded_over_pipeline": ratios(seconds["grounded"], seconds["pipeline"]),
        "percent_of_50_steps": spread(percent(seconds, arguments.steps)),
    }


def measure(arguments: Namespace) -> dict[str, Any]:
    """Measure memory, then time, at every batch size."""
    options = options_of(arguments)
    memory = {
        batch: {side: round(in_child(peak, side, options, arguments, batch)) for side in SIDES}
        for batch in arguments.batches
    }
    pipeline, model = alone(options, arguments), build(options, arguments)
    return {
        f"batch {batch}": {
            **compare(batch, pipeline, model, arguments),
            "peak_mb": memory[batch],
        }
        for batch in arguments.batches
    }


def main(argv: list[str] | None = None) -> dict:
    """Run the benchmark."""
    sizes = [EMBEDDED, *random_models.MODELS]
    made = parser(__doc__.splitlines()[0], repeats=5)
    made.add_argument("--size", choices=sizes, default=EMBEDDED, help="taps, probes, scheduler")
    made.add_argument("--model", help="folder or Hub id; random weights of the size if left out")
    made.add_argument("--head", choices=HEADS, default="probe", help="grounding module")
    made.add_argument("--batches", type=int, nargs="+", help="1 8 16; 1 for a large model on CPU")
    made.add_argument("--steps", type=int, help="sampling steps: 50; 2 for a large model on CPU")
    made.add_argument("--dtype", choices=DTYPES, default="auto")
    made.add_argument("--compile", nargs="?", const="inductor", help="compile the U-Net [by this]")
    arguments = made.parse_args(argv)
    slow = arguments.size != EMBEDDED and torch.device(arguments.device).type == "cpu"
    arguments.batches = arguments.batches or ([1] if slow else [1, 8, 16])
    arguments.steps = arguments.steps or (2 if slow else 50)
    facts = {
        name: getattr(arguments, name)
        for name in ("size", "model", "head", "steps", "dtype", "compile")
    }
    with TemporaryDirectory() as folder:
        if arguments.size != EMBEDDED and arguments.model is None:
            arguments.model = random_models.save(random_models.MODELS[arguments.size], Path(folder))
        result = {**facts, "batches": measure(arguments)}
    return finish("grounding_cost", result, arguments.device, arguments.out)


if __name__ == "__main__":
    main()
