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
        ({"class_path": "torch.nn.Linear"}, "is no scheduler: it has no set_timesteps"),
        ({"class_path": "diffusers.ScoreSdeVeScheduler"}, "is no scheduler: it has no step"),
        (
            {"class_path": "diffusers.RePaintScheduler"},
            r"RePaintScheduler does not fit this model \(step: missing .* 'original_image'\)",
        ),
        (
            {"class_path": "diffusers.DDIMScheduler", "init_args": [1]},
            r"init_args of the scheduler must be a dict, got \[1\]",
        ),
        (
            {"class_path": "diffusers.DDIMScheduler", "init_args": {"colour": 1}},
            "DDIMScheduler has no argument colour",
        ),
    ],
)
def test_refusals(chosen, message):
    with pytest.raises(ValueError, match=message):
        build_scheduler(CONFIG, chosen, 4)


def test_a_configuration_without_a_class_needs_a_choice():
    config = {key: value for key, value in CONFIG.items() if key != "_class_name"}
    with pytest.raises(ValueError, match="scheduler_config.json has no _class_name: set scheduler"):
        build_scheduler(config, None, 4)
    chosen = {"class_path": "diffusers.DDIMScheduler"}
    assert build_scheduler(config, chosen, 4).timesteps.tolist() == [751, 501, 251, 1]


@pytest.mark.parametrize(
    ("told", "words"),
    [({"num_inference_steps": 4, "mu": 1.0}, "'mu'"), ({"sigmas": [1.0, 0.5]}, "'sigmas'")],
)
def test_a_scheduler_that_cannot_be_told_the_course_is_refused(told, words):
    with pytest.raises(ValueError, match=rf"does not fit this model \(set_timesteps: .*{words}\)"):
        build_scheduler(CONFIG, None, 4, course=lambda config: told)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["DDIM", "PNDM", "EulerDiscrete", "DPMSolverMultistep"])
# EulerDiscreteScheduler hands tensors to numpy in a way that numpy 2 deprecates
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_noise_near_the_clean_end_in_half_precision(kind, dtype):
    scheduler = build_scheduler(CONFIG, {"class_path": f"diffusers.{kind}Scheduler"}, 50)
    last = scheduler.timesteps[-1]
    clean, noise = torch.zeros(1, 1, 2, 2, dtype=dtype), torch.ones(1, 1, 2, 2, dtype=dtype)
    noisy = add_noise(scheduler, clean, noise, last)
    expected = (1 - scheduler.alphas_cumprod[round(float(last))]).sqrt()
    assert noisy.dtype == dtype
    torch.testing.assert_close(noisy.float(), expected.expand(1, 1, 2, 2), rtol=4e-3, atol=0)


def test_noising_to_the_start_of_a_flow():
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    scheduler = build_scheduler(config, None, 4)
    clean, noise = torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0)
    noisy = add_noise(scheduler, clean, noise, scheduler.timesteps[2])
    sigma = scheduler.sigmas[2]
    torch.testing.assert_close(noisy, sigma * noise + (1 - sigma) * clean)
