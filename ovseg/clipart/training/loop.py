"""The one training loop: progress, checkpoints, resume, EMA, loss curve."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm


def schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, flat until 60 %, then cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    rest = max(0.0, (step - 0.6 * steps) / (0.4 * steps))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))


def save_atomic(state: dict, path: Path) -> None:
    """Write a checkpoint so that a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


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
    ema: float | None = None,
    save_every: float = 120.0,
    on_save: Callable[[nn.Module, int], None] | None = None,
    every: int = 0,
) -> nn.Module:
    """Train ``model`` in place and return it, or its moving average.

    Args:
        name: Checkpoint ``out/name.pt`` and log ``out/name.jsonl``; an existing one is resumed.
        model: Parameters to train.
        loss_of: Loss of a step, given its number (so that data is a function of the step).
        steps: Number of steps in all.
        lr: Peak learning rate of AdamW.
        out: Folder of checkpoints and logs.
        warmup: Steps of linear warm-up.
        weight_decay: AdamW's.
        ema: Decay of the moving average of the weights, or None.
        save_every: Seconds between checkpoints.
        on_save: Called with the (averaged) model and the step after every ``every`` steps.
        every: See ``on_save``.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99)
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else None
    path, start = out / f"{name}.pt", 0
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
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=5)
    with open(out / f"{name}.jsonl", "a", encoding="utf-8") as log:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule(step, steps, warmup)
            loss = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if average:
                average.update_parameters(model)
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
            if step % 20 == 0:
                log.write(json.dumps({"step": step, "loss": round(smooth, 5)}) + "\n")
                bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
            if time.monotonic() - saved > save_every:
                save(step + 1)
                log.flush()
                saved = time.monotonic()
            if every and on_save and (step + 1) % every == 0:
                on_save(average.module if average else model, step + 1)
                model.train()
        if start < steps:
            save(steps)
    return (average.module if average else model).eval()
