"""What a stored latent saves, and what a batch saves.

    python benchmarks/sampling.py --out runs/benchmarks/sampling.json

Two ratios in one run. *Training step*: a step of the grounding module on features of stored
latents (one U-Net call) against one that samples its images first, with guidance, as the paper's
released code does. *Batch*: images per second one by one against 16 at a time.
"""

from __future__ import annotations

import torch
from common import finish, interleave, parser, ratios, spread
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from ovseg.backbones.taps import SD1_TAPS
from ovseg.backbones.unet import UNetBackbone
from ovseg.grounders.fusion import FusionGrounder
from ovseg.structures import DiffusionSample, Entity, Features, Request
from ovseg.vocabulary import Vocabulary

# of a U-Net with three levels, such as the embedded one
SMALL_TAPS = [
    *(f"down_blocks.{i}.resnets.0" for i in range(3)),
    "mid_block",
    *(f"up_blocks.{i}.resnets.0" for i in range(3)),
]


def make_requests(count: int) -> list[Request]:
    """Return prompts of two objects each."""
    classes = Vocabulary.load("clipart").classes
    made = []
    for index in range(count):
        one, two = classes[index % len(classes)], classes[(index + 7) % len(classes)]
        head = f"a photo of {one.article} "
        middle = f"{head}{one.name} and {two.article} "
        entities = (
            Entity(one.id, one.name, (len(head), len(head) + len(one.name))),
            Entity(two.id, two.name, (len(middle), len(middle) + len(two.name))),
        )
        made.append(Request(index, index, middle + two.name, entities))
    return made


class Trainer:
    """A grounding module's training step, the loss being plain cross-entropy.

    Args:
        backbone: Gives the features.
        small: Use a small decoder instead of the paper's.
    """

    def __init__(self, backbone: UNetBackbone, small: bool) -> None:
        strides = {tap.stride for tap in backbone.feature_spec.taps.values()}
        widths = (16, 32, 64, 128)[-len(strides) :]
        sizes = {"patch": 2, "hidden": 128, "heads": 4, "ffn": 512} if small else {}
        head = FusionGrounder(backbone.feature_spec, backbone.text_width, widths, **sizes)
        self.backbone, self.head = backbone, head.to(backbone.device).train()
        self.optimizer = torch.optim.AdamW(self.head.parameters())

    def _step(self, features: Features, requests: list[Request]) -> None:
        entities = self.backbone.entities(requests)
        logits = self.head(features, entities)
        target = torch.rand_like(interpolate(logits, self.backbone.image_size)).round()
        self.optimizer.zero_grad(set_to_none=True)
        binary_cross_entropy_with_logits(logits, target).backward()
        self.optimizer.step()

    def from_stored(self, sample: DiffusionSample) -> None:
        """Train on latents that were sampled before."""
        features = self.backbone.features(sample.latents, sample.timesteps, sample.requests)
        self._step(features, sample.requests)

    def from_scratch(self, requests: list[Request]) -> None:
        """Sample the images, then train on what was read on the way."""
        self._step(self.backbone.sample(requests).features, requests)


def main(argv: list[str] | None = None) -> dict:
    """Run the benchmark."""
    made = parser(__doc__.splitlines()[0], repeats=5)
    made.add_argument("--model", default="clipart", help="folder, Hub id, or clipart")
    made.add_argument("--paper", action="store_true", help="the paper's taps and head (SD 1.x)")
    made.add_argument("--steps", type=int, default=50, help="sampling steps of the training step")
    made.add_argument("--image-steps", type=int, default=20, help="sampling steps of the images")
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--dtype", default="float32")
    arguments = made.parse_args(argv)
    taps = list(SD1_TAPS) if arguments.paper else SMALL_TAPS
    options = {"model": arguments.model, "taps": taps, "dtype": arguments.dtype}
    backbone = UNetBackbone(**options, steps=arguments.steps).to(arguments.device)
    requests = make_requests(arguments.batch)
    stored = backbone.sample(requests)
    trainer = Trainer(backbone, small=not arguments.paper)
    cases = {
        "sampled first": lambda: trainer.from_scratch(requests),
        "from stored latents": lambda: trainer.from_stored(stored),
    }
    steps = interleave(cases, arguments.repeats, arguments.device)

    generator = UNetBackbone(**options, steps=arguments.image_steps).to(arguments.device)
    cases = {
        "batch 1": lambda: [generator.sample([request]) for request in requests],
        f"batch {arguments.batch}": lambda: generator.sample(requests),
    }
    images = interleave(cases, arguments.repeats, arguments.device)
    one, many = images.values()
    result = {
        "model": arguments.model,
        "batch": arguments.batch,
        "guidance_scale": backbone.guidance_scale,
        "training_step": {
            "sampling_steps": arguments.steps,
            "seconds": {name: spread(times) for name, times in steps.items()},
            "times_faster": ratios(steps["sampled first"], steps["from stored latents"]),
        },
        "images": {
            "sampling_steps": arguments.image_steps,
            "per_second": {
                name: spread([arguments.batch / t for t in times]) for name, times in images.items()
            },
            "times_faster": ratios(one, many),
        },
    }
    return finish("sampling", result, arguments.device, arguments.out)


if __name__ == "__main__":
    main()
