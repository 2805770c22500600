"""ovseg.backbones.unet: sampling, taps and their repetition, on a tiny random pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_data import request

from ovseg.backbones.unet import UNetBackbone
from ovseg.data.manifest import deciding
from ovseg.structures import Entity, Request

TAPS = ["conv_in", "down_blocks.0.attentions.0", "mid_block", "up_blocks.1.attentions.0"]


REQUESTS = [
    request(0, "a photo of a house and a fish", "house", "fish"),
    request(1, "a photo of a key", "key"),
    request(2, "a picture of an umbrella and a hammer", "umbrella", "hammer"),
]


@pytest.fixture(scope="module")
def backbone(tiny_pipeline):
    return UNetBackbone(
        tiny_pipeline,
        TAPS,
        steps=4,
        tap_steps=(1, 3),
        both_branches=True,
        attention=("down_blocks.0", "up_blocks.2.attentions.0"),
    )


@pytest.fixture(scope="module")
def sample(backbone):
    return backbone.sample(REQUESTS)


def test_what_the_configuration_files_say(tiny_pipeline):
    backbone = UNetBackbone(tiny_pipeline, TAPS[::-1], steps=4, tap_steps=(1, 3))
    spec = backbone.feature_spec
    assert [(name, tap[:2]) for name, tap in spec.taps.items()] == [  # in network order
        ("conv_in", (16, 4)),
        ("down_blocks.0.attentions.0", (16, 4)),
        ("mid_block", (32, 16)),
        ("up_blocks.1.attentions.0", (24, 8)),
    ]
    assert (spec.steps, spec.branches, backbone.text_width, backbone.image_size) == (2, 1, 32, 64)
    assert backbone.timesteps.tolist() == [1, 501]  # DDIM, leading spacing, offset 1
    assert not any(True for _ in backbone.parameters())  # no weights loaded


def test_shapes_and_dtypes(backbone, sample):
    assert sample.images.shape == (3, 3, 64, 64) and sample.images.dtype == torch.uint8
    assert sample.latents.shape == (3, 2, 4, 16, 16) and sample.latents.dtype == torch.float32
    assert sample.features.maps["mid_block"].shape == (3, 2, 2, 32, 4, 4)
    assert list(sample.features.maps) == TAPS
    assert sample.features.attention.shape == (3, 2, 16, 16)
    assert sample.entities.text.shape == (3, 2, 32)
    assert sample.entities.valid.tolist() == [[True, True], [True, False], [True, True]]
    assert (sample.entities.text[1, 1] == 0).all()


def test_frozen_and_always_in_eval_mode(backbone, sample):
    backbone.train()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.modules())
    assert not sample.latents.is_inference()


def test_stored_latents_give_the_live_features(backbone, sample):
    again = backbone.features(sample.latents, sample.timesteps, REQUESTS)
    for tap in TAPS:
        torch.testing.assert_close(
            again.maps[tap], sample.features.maps[tap], atol=1e-5, rtol=0, msg=tap
        )


def test_conditional_only_is_the_second_branch_and_one_u_net_call(tiny_pipeline, sample):
    one = UNetBackbone(tiny_pipeline, TAPS, steps=4, tap_steps=(1, 3))
    live = one.sample(REQUESTS)
    assert torch.equal(live.images, sample.images)
    sizes = []
    handle = one.denoiser.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    stored = one.features(live.latents, live.timesteps, REQUESTS)
    handle.remove()
    assert sizes == [3, 3]  # one call of B samples per tapped step
    for tap in TAPS:
        both = sample.features.maps[tap]
        assert stored.maps[tap].shape == (3, 2, 1, *both.shape[3:])
        torch.testing.assert_close(stored.maps[tap], both[:, :, 1:], atol=1e-5, rtol=0)
        prompted = (both[:, :, 0] - both[:, :, 1]).abs().max() > 1e-4
        assert prompted == (tap != "conv_in")  # the text enters after the first convolution


def test_branches_of_a_batch_belong_to_the_same_image(backbone, sample):
    for row, alone in enumerate(REQUESTS):
        features = backbone.features(sample.latents[row : row + 1], sample.timesteps, [alone])
        for tap in TAPS:
            torch.testing.assert_close(
                features.maps[tap][0], sample.features.maps[tap][row], atol=2e-5, rtol=1e-5
            )


def test_attention_of_a_batch_is_that_of_single_images(backbone, sample):
    whole = backbone.features(sample.latents, sample.timesteps, REQUESTS).attention
    assert (whole[1, 1] == 0).all() and whole[0].amin() >= 0
    for row, alone in enumerate(REQUESTS):
        features = backbone.features(sample.latents[row : row + 1], sample.timesteps, [alone])
        count = len(alone.entities)
        torch.testing.assert_close(features.attention[0], whole[row, :count], atol=1e-6, rtol=1e-5)


# diffusers' own pipeline: its EulerDiscreteScheduler does what numpy 2 deprecates
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("scheduler", [None, "EulerDiscreteScheduler", "DDPMScheduler"])
def test_images_equal_those_of_diffusers(tiny_pipeline, scheduler):
    import diffusers
    from diffusers import StableDiffusionPipeline

    from ovseg.backbones.files import quiet

    chosen = scheduler and {"class_path": f"diffusers.{scheduler}"}
    ours = UNetBackbone(tiny_pipeline, TAPS[:1], steps=4, guidance_scale=5.0, scheduler=chosen)
    live = ours.sample(REQUESTS[:2])
    with quiet():
        pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline, safety_checker=None)
        if scheduler:
            kind = getattr(diffusers, scheduler)
            pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        [r.prompt for r in REQUESTS[:2]],
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(r.seed) for r in REQUESTS[:2]],
    ).images
    theirs = torch.stack([torch.from_numpy(np.array(image)) for image in images])
    assert torch.equal(live.images, theirs.permute(0, 3, 1, 2))


def test_what_is_kept_entered_the_call_after_scaling(tiny_pipeline):
    chosen = {"class_path": "diffusers.EulerDiscreteScheduler"}
    backbone = UNetBackbone(tiny_pipeline, ["conv_in"], steps=3, tap_steps=(3,), scheduler=chosen)
    live = backbone.sample(REQUESTS[:1])
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(100))
    # the first call sees noise of standard deviation sigma over sqrt(sigma^2 + 1)
    ratio = live.latents[:, 0] / noise
    assert ratio.std() < 1e-5 and 0.9 < ratio.mean() <= 1.001
    again = backbone.features(live.latents, live.timesteps, REQUESTS[:1])
    assert torch.allclose(again.maps["conv_in"], live.features.maps["conv_in"], atol=1e-5)


def test_without_guidance_both_branches_can_still_be_tapped(tiny_pipeline):
    plain = UNetBackbone(tiny_pipeline, TAPS[1:2], steps=2, guidance_scale=1.0)
    both = UNetBackbone(tiny_pipeline, TAPS[1:2], steps=2, guidance_scale=1.0, both_branches=True)
    one, two = plain.sample(REQUESTS[:2]), both.sample(REQUESTS[:2])
    assert (one.images.int() - two.images.int()).abs().max() <= 1
    torch.testing.assert_close(
        one.features.maps[TAPS[1]], two.features.maps[TAPS[1]][:, :, 1:], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("scheduler", [None, "EulerDiscreteScheduler"])
def test_encoding_an_image_noises_it_to_the_tapped_steps(tiny_pipeline, scheduler):
    chosen = scheduler and {"class_path": f"diffusers.{scheduler}"}
    backbone = UNetBackbone(tiny_pipeline, ["conv_in"], steps=4, tap_steps=(1, 4), scheduler=chosen)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    latents = backbone.encode_image(images, REQUESTS[:2])
    assert latents.shape == (2, 2, 4, 16, 16)
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    pixels = images.float() / 127.5 - 1
    clean = backbone.vae.encode(pixels).latent_dist.mode() * 0.18215
    for row, req in enumerate(REQUESTS[:2]):
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(req.seed))[0]
        for column, step in enumerate(backbone.timesteps.tolist()):
            low, high = int(step), min(999, int(step) + 1)
            share = step - low
            alpha = alphas[low] * (1 - share) + alphas[high] * share
            expected = alpha.sqrt() * clean[row] + (1 - alpha).sqrt() * noise
            torch.testing.assert_close(latents[row, column], expected, atol=5e-3, rtol=1e-2)
    with pytest.raises(ValueError, match="resize them"):
        backbone.encode_image(images[..., :32], REQUESTS[:2])


def test_half_precision_latents_are_exact_in_float32(tiny_pipeline):
    backbone = UNetBackbone(tiny_pipeline, TAPS, steps=2, dtype="bfloat16")
    with torch.autocast("cpu", dtype=torch.float16):  # someone else's autocast does not matter
        live = backbone.sample(REQUESTS[:2])
    again = backbone.features(live.latents, live.timesteps, REQUESTS[:2])
    assert live.latents.dtype == torch.float32
    assert torch.equal(live.latents, live.latents.bfloat16().float())
    assert again.maps["mid_block"].dtype == torch.float32
    assert torch.allclose(again.maps["conv_in"], live.features.maps["conv_in"], atol=1e-5)


def test_a_sample_depends_on_its_seed_alone(backbone, sample):
    alone = backbone.sample(REQUESTS[1:2])
    assert (alone.images.int() - sample.images[1:2].int()).abs().max() <= 1
    other = backbone.sample([REQUESTS[1]._replace(seed=5)])
    assert not torch.equal(alone.images, other.images)


def test_names_embedded_in_the_prompt_itself(tiny_pipeline, backbone):
    inside = UNetBackbone(tiny_pipeline, TAPS, steps=4, tap_steps=(1, 3), names_in="prompt")
    text = inside.embed(REQUESTS)
    tokenizer, encoder = inside.text.tokenizer, inside.text.encoders["text_encoder"]
    house = tokenizer(REQUESTS[0].prompt)["input_ids"].index(tokenizer("house")["input_ids"][1])
    padded = tokenizer([REQUESTS[0].prompt], padding="max_length", return_tensors="pt")
    states = encoder(padded["input_ids"]).last_hidden_state[0]
    torch.testing.assert_close(text[0, 0], states[house])
    assert not torch.allclose(text[0], backbone.embed(REQUESTS)[0], atol=1e-3)
    assert not text[1, 1].any()  # padding
    alone = [Request(0, 0, "", (Entity(1, "house"),))]  # in no prompt: in a sentence of its own
    assert torch.equal(inside.embed(alone), backbone.embed(alone))
    assert inside.digest != UNetBackbone(tiny_pipeline, TAPS, steps=4, tap_steps=(1, 3)).digest
    with pytest.raises(ValueError, match="names_in must be sentence, prompt or pooled, got 'x'"):
        UNetBackbone(tiny_pipeline, TAPS, names_in="x")


@pytest.mark.parametrize("names_in", ["sentence", "prompt", "pooled"])
def test_several_tokens_are_averaged_or_kept(tiny_pipeline, names_in):
    """ "zyx" is a token for each letter, and stands in the second prompt alone."""
    backbone = UNetBackbone(tiny_pipeline, TAPS, names_in=names_in)
    apart = Request(0, 0, "", (Entity(1, "zyx"), Entity(2, "house")))
    asked = [apart, request(1, "a photo of a zyx", "zyx")]
    mean, kept = backbone.embed(asked), backbone.embed_tokens(asked)
    count = len(backbone.text.tokenizer("zyx")["input_ids"]) - 2
    there = kept.any(dim=3)
    numbers = [[1, 1], [1, 0]] if names_in == "pooled" else [[count, 1], [count, 0]]
    assert count > 1 and there.sum(dim=2).tolist() == numbers
    assert kept.shape == (2, 2, max(map(max, numbers)), 32)
    by_hand = kept.sum(dim=2) / there.sum(dim=2).clamp(min=1)[..., None]
    torch.testing.assert_close(mean, by_hand)
    same = torch.equal(kept[0, 0], kept[1, 0])
    assert same == (names_in != "prompt")  # a prompt says it in other words around it
    assert backbone.embed_tokens([]).shape == (0, 1, 1, 32)


def test_digest_follows_what_decides_the_features(tiny_pipeline):
    def digest(**changes):
        return UNetBackbone(**{"model": tiny_pipeline, "taps": TAPS, "steps": 4} | changes).digest

    assert digest() == digest(guidance_scale=3.0) == digest(taps=TAPS[::-1])
    assert digest(tap_steps=(1,), steps=8) == digest(tap_steps=(1,))  # the same timestep, 1
    others = [digest(taps=TAPS[1:]), digest(tap_steps=(2,)), digest(both_branches=True)]
    assert len({digest(), *others, digest(template="a {name}")}) == 5
    assert digest() == digest(image_size=64) == digest(attention=("mid_block",))
    assert digest() != digest(image_size=32)


def test_describe_is_json_and_builds_the_backbone_again(backbone):
    import json

    facts = json.loads(json.dumps(backbone.describe()))
    assert UNetBackbone(**facts["init_args"]).digest == facts["digest"] == backbone.digest
    assert facts["class_path"] == "ovseg.backbones.unet.UNetBackbone"
    there = UNetBackbone(**backbone.init_args | {"offload": True, "local_files_only": True})
    assert there.describe() != backbone.describe()
    assert deciding(there.describe()) == deciding(backbone.describe())
    assert facts["scheduler"] == "DDIMScheduler" and facts["timesteps"] == [1.0, 501.0]
