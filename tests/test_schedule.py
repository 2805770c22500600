"""ovseg.backbones.schedule: schedulers by class path, tapped calls, guidance."""

from __future__ import annotations

import pytest
import torch

from ovseg.backbones.schedule import add_noise, build_scheduler, draw_noise, guide, tapped_calls

CONFIG = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}


def test_the_models_own_scheduler_and_another_with_its_noise_levels():
    own = build_scheduler(CONFIG, None, 4)
    assert type(own).__name__ == "DDIMScheduler" and own.timesteps.tolist() == [751, 501, 251, 1]
    chosen = {
        "class_path": "diffusers.DPMSolverMultistepScheduler",
        "init_args": {"solver_order": 3},
    }
    other = build_scheduler(CONFIG, chosen, 10)
    assert other.config.solver_order == 3 and other.config.beta_end == 0.012
    assert torch.equal(other.alphas_cumprod, own.alphas_cumprod)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"class": "x"}, "class_path and init_args, got the keys"),
        ({"class_path": "diffusers.NoScheduler"}, "no scheduler class 'diffusers.NoScheduler'"),
        ({"class_path": "no.such.Module"}, "no scheduler class 'no.such.Module'"),
        ({"class_path": "torch.nn.Linear"}, "is no scheduler"),
        (
            {"class_path": "diffusers.DDIMScheduler", "init_args": {"colour": 1}},
            "DDIMScheduler has no argument colour",
        ),
    ],
)
def test_refusals(chosen, message):
    with pytest.raises(ValueError, match=message):
        build_scheduler(CONFIG, chosen, 4)


def test_steps_are_counted_from_the_clean_end():
    assert tapped_calls(50, (1, 5, 50)) == [49, 45, 0]
    with pytest.raises(ValueError, match=r"within 1..50 .*got 51"):
        tapped_calls(50, (51,))


def test_guidance():
    output = torch.tensor([1.0, 2.0, 5.0, 5.0])  # u0 u1 c0 c1
    assert guide(output, 2, 3.0).tolist() == [13.0, 11.0]
    assert guide(output, 2, 1.0).tolist() == [5.0, 5.0]
    assert guide(output[2:], 2, 0.0).tolist() == [5.0, 5.0]


def test_noise_of_a_sample_depends_on_its_generator_alone():
    def generators(*seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]

    like = (torch.device("cpu"), torch.float32)
    both = draw_noise((2, 3), generators(1, 2), like)
    assert torch.equal(both[1:], draw_noise((2, 3), generators(2), like))


def test_noising_to_the_start_of_a_flow():
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    scheduler = build_scheduler(config, None, 4)
    clean, noise = torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0)
    noisy = add_noise(scheduler, clean, noise, scheduler.timesteps[2])
    sigma = scheduler.sigmas[2]
    torch.testing.assert_close(noisy, sigma * noise + (1 - sigma) * clean)
