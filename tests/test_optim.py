"""ovseg.optim: Muon and AdamW as one optimizer."""

import pytest
import torch
from torch import nn

from ovseg.optim import MuonAdamW


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5))


def fit(model, optimizer, steps=3, start=0):
    for step in range(start, start + steps):
        x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_each_part_moves_as_torch_moves_it():
    model, other = net(), net()
    found = fit(model, MuonAdamW(model.parameters(), lr=0.01, weight_decay=0.1))
    matrices = [nn.Parameter(p.detach().flatten(1)) for p in other.parameters() if p.ndim > 1]
    vectors = [p for p in other.parameters() if p.ndim == 1]
    parts = [
        torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(vectors, lr=0.01, weight_decay=0.1, betas=(0.9, 0.99)),
    ]
    kernels = [p for p in other.parameters() if p.ndim > 1]
    for step in range(3):
        x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        other.zero_grad()
        other(x).square().mean().backward()
        for matrix, kernel in zip(matrices, kernels, strict=True):
            matrix.grad = kernel.grad.flatten(1)
        for part in parts:
            part.step()
        for matrix, kernel in zip(matrices, kernels, strict=True):
            kernel.data.copy_(matrix.data.view_as(kernel))
    for a, b in zip(found, other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_all_to_adamw_is_adamw():
    model, other = net(), net()
    found = fit(model, MuonAdamW(model.parameters(), lr=0.01, adamw=model.parameters()))
    options = {"lr": 0.01, "weight_decay": 0.01, "betas": (0.9, 0.99)}
    wanted = fit(other, torch.optim.AdamW(other.parameters(), **options))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_resuming_goes_on_as_if_never_stopped():
    model = net()
    whole = fit(model, MuonAdamW(model.parameters()), steps=6)
    model = net()
    optimizer = MuonAdamW(model.parameters())
    fit(model, optimizer)
    state = optimizer.state_dict()
    resumed = MuonAdamW(model.parameters())
    resumed.load_state_dict(state)
    half = fit(model, resumed, start=3)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(whole, half, strict=True))


def test_a_scheduler_reaches_both_parts():
    model = net()
    optimizer = MuonAdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    fit(model, optimizer, steps=1)
    scheduler.step()
    before = [p.detach().clone() for p in model.parameters()]
    after = fit(model, optimizer, steps=1, start=1)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_kernels_that_are_not_contiguous_are_refused():
    model = net().to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="contiguous"):
        MuonAdamW(model.parameters())


def test_kernels_are_clipped_like_all_else():
    model = net()
    optimizer = MuonAdamW(model.parameters())
    (100 * model(torch.ones(4, 3, 4, 4))).square().mean().backward()
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    torch.nn.utils.clip_grad_norm_(held, 1.0)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm == pytest.approx(1.0, rel=1e-3)


def test_a_kernel_s_overflow_in_mixed_precision_changes_no_weight():
    model = net()
    optimizer, scaler = MuonAdamW(model.parameters()), torch.amp.GradScaler("cpu", init_scale=8.0)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(model(torch.ones(4, 3, 4, 4)).square().mean()).backward()
    scaled = model[3].weight.grad.clone()
    model[0].weight.grad[0, 0, 0, 0] = float("inf")
    scaler.unscale_(optimizer)
    assert torch.equal(model[3].weight.grad, scaled / 8)
    scaler.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_loaded_state_brings_its_learning_rate():
    optimizer = MuonAdamW(net().parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    state = optimizer.state_dict()
    inner = [group for part in state["parts"] for group in part["param_groups"]]
    assert [(g["lr"], g["initial_lr"]) for g in inner] == [(0.02, 0.1)] * 2
    other = MuonAdamW(net().parameters(), lr=0.5)
    other.load_state_dict(state)
    assert [(g["lr"], g["initial_lr"]) for g in other.param_groups] == [(0.02, 0.1)] * 2
