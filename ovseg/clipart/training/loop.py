"""The one training loop: progress, checkpoints, resume, EMA, loss curve; alone or by torchrun."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ovseg.optim import MuonAdamW

# layers that Muon's authors leave to AdamW: the first, the last, embeddings
ENDS = ("conv_in", "conv_out", "time_emb", "vae.encoder.conv_in", "vae.decoder.conv_out")
ENDS += ("vae.quant_conv", "vae.post_quant_conv", "preview", "vision.backbone.stem.0", "text.")


def schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, flat until 25 %, then linear to zero."""
    return min((step + 1) / warmup, 1.0, (1 - step / steps) / 0.75)


def save_atomic(state: dict, path: Path) -> None:
    """Write a checkpoint so that a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def kept_arrays(
    path: Path, facts: dict, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz``; make them first if it is damaged or of other facts.

    Args:
        path: The file; a kill while it is written leaves none.
        facts: JSON-ready, whatever the arrays depend on; kept beside them.
        make: Makes the arrays by name.
    """
    wanted = json.dumps(facts, sort_keys=True)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["facts"]) == wanted:
                return {name: stored[name] for name in stored.files if name != "facts"}
    except Exception:  # none, or a damaged one, of which numpy and zipfile raise a dozen kinds
        pass
    arrays = make()
    partial = path.with_suffix(".tmp.npz")
    np.savez(partial, facts=wanted, **arrays)
    partial.replace(path)
    return arrays


def digest_of(model: nn.Module) -> str:
    """Hex digest of a model's weights, wherever they lie."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(name.encode() + value.cpu().numpy().tobytes())
    return total.hexdigest()[:16]


def processes() -> tuple[int, int]:
    """Return this process's rank and how many there are, joining torchrun's group if any."""
    if "RANK" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group()
    return dist.get_rank(), dist.get_world_size()


@contextmanager
def first_process_first() -> Iterator[bool]:
    """Let torchrun's first process go through a block before the others, which find its files.

    Yields:
        Whether this is the first process.
    """
    rank, world = processes()
    if rank:
        dist.barrier()
    yield rank == 0
    if world > 1 and not rank:
        dist.barrier()


def _average_gradients(model: nn.Module, world: int) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    means = flat.div_(world).split([g.numel() for g in gradients])
    for g, mean in zip(gradients, means, strict=True):
        g.copy_(mean.view_as(g))


def plot_loss(log: Path) -> None:
    """Draw the loss curve of a log as a PNG beside it."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (moving average)", title=log.stem)
    curve = {line["step"]: line["loss"] for line in lines}  # a resumed step counts once
    axes.plot(sorted(curve), [curve[step] for step in sorted(curve)])
    axes.grid(alpha=0.3)
    figure.savefig(log.with_suffix(".png"), dpi=120)


def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    out: Path,
    warmup: int = 100,
    weight_decay: float = 0.01,
    muon: bool = False,
    ema: float | None = None,
    save_every: float = 120.0,
    on_save: Callable[[nn.Module, int], None] | None = None,
    every: int = 0,
) -> nn.Module:
    """Train ``model`` in place and return it, or its moving average.

    Args:
        name: Checkpoint ``out/name.pt`` and log ``out/name.jsonl``; an existing one is resumed.
        model: Parameters to train.
        loss_of: Loss of a batch, given its number (so that data is a function of it alone); each
            of N processes takes every Nth batch, and their gradients are averaged.
        steps: Number of steps in all.
        lr: Peak learning rate of AdamW.
        out: Folder of checkpoints and logs.
        warmup: Steps of linear warm-up.
        weight_decay: Decoupled weight decay.
        muon: Train kernels and matrices by Muon (see `ovseg.optim.MuonAdamW`).
        ema: Decay of the moving average of the weights, or None.
        save_every: Seconds between checkpoints.
        on_save: Called with the (averaged) model and the step after every ``every`` steps.
        every: See ``on_save``.
    """
    device = next(model.parameters()).device
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    apart = [p for n, p in named.items() if not muon or n.startswith(ENDS)]
    optimizer = MuonAdamW(named.values(), lr, weight_decay, adamw=apart)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else None
    path, start = out / f"{name}.pt", 0
    rank, world = processes()
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average:
            average.load_state_dict(state["average"])
        start = state["step"]
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        save_atomic(state | ({"average": average.state_dict()} if average else {}), path)

    model.train()
    smooth, saved = None, time.monotonic()
    bar = tqdm(
        range(start, steps),
        initial=start,
        total=steps,
        desc=name,
        mininterval=5,
        disable=rank > 0,
    )
    with open(os.devnull if rank else out / f"{name}.jsonl", "a", encoding="utf-8") as log:
        for step in bar:
            loss = loss_of(step * world + rank)
            loss.backward()
            if world > 1:
                _average_gradients(model, world)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule(step, steps, warmup)
            optimizer.step()
            optimizer.zero_grad()
            if average:
                average.update_parameters(model)
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
            if step % 20 == 0:
                log.write(json.dumps({"step": step, "loss": round(smooth, 5)}) + "\n")
                bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
            if rank == 0 and time.monotonic() - saved > save_every:
                save(step + 1)
                log.flush()
                saved = time.monotonic()
            if rank == 0 and every and on_save and (step + 1) % every == 0:
                on_save(average.module if average else model, step + 1)
                model.train()
        if rank == 0 and start < steps:
            save(steps)
    if rank == 0:
        plot_loss(out / f"{name}.jsonl")
    return (average.module if average else model).eval()
