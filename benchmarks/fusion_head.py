"""Fusion head at Stable Diffusion 1.x size, forward and backward: ours against the literal form.

    python benchmarks/fusion_head.py --out runs/benchmarks/fusion_head.json

Time is interleaved; peak memory is what one step adds to a process that holds the model, the
features and nothing else: a fresh process per form on CPU, the allocator's own count on a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import torch
from common import finish, interleave, parser, ratios, spread
from literal_fusion import LiteralFusion, copy_weights
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ovseg.backbones.taps import SD1_TAPS
from ovseg.grounders.fusion import FusionGrounder
from ovseg.structures import Entities, Features, FeatureSpec

# channels and stride of the 25 taps, in order
TABLE = (
    [(320, 8)] * 3
    + [(320, 16), (640, 16), (640, 16), (640, 32), (1280, 32), (1280, 32)]
    + [(1280, 64)] * 6
    + [(1280, 32)] * 3
    + [(1280, 16), (640, 16), (640, 16), (640, 8), (320, 8), (320, 8), (320, 8)]
)


def build(form: str, spec: FeatureSpec, device: str) -> nn.Module:
    """Return one of the two forms, "ours" or "literal", in training mode."""
    torch.manual_seed(0)
    kind = {"ours": FusionGrounder, "literal": LiteralFusion}[form]
    return kind(spec, 768).to(device).train()


def inputs(spec: FeatureSpec, batch: int, names: int, size: int, device: str):
    """Return random features and names, and a random target ``(B, K, size, size)``."""
    made = torch.Generator().manual_seed(0)
    maps = {}
    for tap, (channels, stride, _) in spec.taps.items():
        side = size // stride
        shape = (batch, spec.steps, spec.branches, channels, side, side)
        maps[tap] = torch.randn(shape, generator=made).to(device)
    valid = torch.ones(batch, names, dtype=torch.bool, device=device)
    text = torch.randn(batch, names, 768, generator=made).to(device)
    target = (torch.rand(batch, names, size, size, generator=made) > 0.5).float().to(device)
    return Features(maps), Entities(text, valid.long(), valid), target


def step(head: nn.Module, features: Features, entities: Entities, target: Tensor) -> None:
    """Run forward, loss and backward."""
    head.zero_grad(set_to_none=True)
    binary_cross_entropy_with_logits(head(features, entities), target).backward()


def resident(key: str) -> float:
    """Return this process's VmRSS or VmHWM in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak(form: str, spec: FeatureSpec, arguments: Namespace) -> float:
    """Return the MB that one step needs beyond model and features."""
    head = build(form, spec, arguments.device)
    data = inputs(spec, arguments.batch, arguments.names, arguments.size, arguments.device)
    if torch.device(arguments.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(head, *data)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resident("VmRSS")
    step(head, *data)
    return resident("VmHWM") - before


def peak_in_child(form: str, arguments: Namespace) -> float:
    """Measure `peak` in a fresh process."""
    command = [sys.executable, __file__, "--peak-of", form, "--device", arguments.device]
    for name in ("batch", "names", "size", "branches"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main(argv: list[str] | None = None) -> dict | None:
    """Run the benchmark."""
    made = parser(__doc__.splitlines()[0], repeats=7)
    made.add_argument("--batch", type=int, default=1)
    made.add_argument("--names", type=int, default=2, help="names per image")
    made.add_argument("--size", type=int, default=512, help="image size")
    made.add_argument("--branches", type=int, default=2, choices=(1, 2))
    made.add_argument("--peak-of", choices=("ours", "literal"), help="print a form's MB and stop")
    arguments = made.parse_args(argv)
    spec = FeatureSpec(dict(zip(SD1_TAPS, TABLE, strict=True)), branches=arguments.branches)
    if arguments.peak_of:
        print(peak(arguments.peak_of, spec, arguments))
        return None
    memory = {form: peak_in_child(form, arguments) for form in ("literal", "ours")}
    heads = {form: build(form, spec, arguments.device) for form in ("literal", "ours")}
    copy_weights(heads["ours"], heads["literal"])
    data = inputs(spec, arguments.batch, arguments.names, arguments.size, arguments.device)
    with torch.no_grad():
        both = [heads[form](*data[:2]) for form in ("literal", "ours")]
    cases = {form: lambda head=head: step(head, *data) for form, head in heads.items()}
    seconds = interleave(cases, arguments.repeats, arguments.device)
    result = {
        "parameters": sum(p.numel() for p in heads["ours"].parameters()),
        "batch": arguments.batch,
        "names": arguments.names,
        "size": arguments.size,
        "branches": arguments.branches,
        "largest_difference": float((both[0] - both[1]).abs().max() / both[0].abs().max()),
        "seconds": {form: spread(times) for form, times in seconds.items()},
        "times_faster": ratios(seconds["literal"], seconds["ours"]),
        "peak_mb": {form: round(mb, 1) for form, mb in memory.items()},
        "times_less_memory": round(memory["literal"] / memory["ours"], 2),
    }
    return finish("fusion_head", result, arguments.device, arguments.out)


if __name__ == "__main__":
    main()
