"""The loop that trains the clip-art world, and its tokenizer."""

import os

import pytest
import torch
from torch import nn

from ovseg.clipart.captions import corpus
from ovseg.clipart.scenes import nouns
from ovseg.clipart.training.loop import schedule, train
from ovseg.clipart.training.text import MAX_LENGTH, train_tokenizer


def _fit(out, steps, seen=None):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)

    def loss(step):
        if seen is not None:
            seen.append(step)
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(step))
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    return train("line", model, loss, steps=steps, lr=0.05, out=out, warmup=1, ema=0.5)


def test_training_resumes_where_it_stopped(tmp_path):
    seen = []
    _fit(tmp_path / "a", 30, seen)
    assert seen == list(range(30))
    again = []
    weights = _fit(tmp_path / "a", 30, again).weight
    assert again == []  # done already
    more = []
    _fit(tmp_path / "a", 40, more)
    assert more == list(range(30, 40))
    assert weights.shape == (1, 2)
    assert (tmp_path / "a" / "line.png").stat().st_size > 1000  # the loss curve


def test_schedule_warms_up_and_decays():
    values = [schedule(step, 1000, 100) for step in range(1000)]
    assert values[0] == 0.01 and values[99] == values[250] == 1.0
    assert abs(values[625] - 0.5) < 1e-9 and abs(values[999] - 1 / 750) < 1e-9


def test_tokenizer_keeps_every_noun_whole_and_knows_every_byte(tmp_path):
    tokenizer = train_tokenizer(tmp_path, captions=300)
    for noun in nouns().values():
        assert len(tokenizer.tokenize(noun.name)) == 1, noun.name
    ids = tokenizer("a xylophone é 漢").input_ids
    assert tokenizer.eos_token_id not in ids[:-1]
    longest = max(len(tokenizer(text).input_ids) for text in corpus(0, 500))
    assert longest <= MAX_LENGTH


def test_what_was_made_before_is_kept_for_the_same_seed_and_autoencoder(tmp_path, monkeypatch):
    """And for no others; neither a kill nor a damaged file stops the next run."""
    from diffusers import AutoencoderKL

    from ovseg.clipart.training import annotator, unet

    monkeypatch.setattr(annotator, "POOL", 50)
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    for seed, folder in enumerate("ab"):
        torch.manual_seed(seed)
        vae = AutoencoderKL(3, 3, down, up, (2,) * 4, norm_num_groups=2)
        vae.save_pretrained(tmp_path / folder / "vae")

    def latents(folder, seed):
        vae = AutoencoderKL.from_pretrained(tmp_path / folder / "vae")
        return unet.latent_pool(vae, tmp_path, seed, 100, "cpu")

    def images(folder, seed):
        return annotator._reconstructions(tmp_path / folder, tmp_path, seed, "cpu")[0]

    for make, path in ((latents, "latents.npz"), (images, "reconstructions.npz")):
        first = make("a", 0)
        time = (tmp_path / path).stat().st_mtime_ns
        assert torch.equal(make("a", 0), first)
        assert (tmp_path / path).stat().st_mtime_ns == time
        assert not torch.equal(make("a", 1), first)
        assert not torch.equal(make("b", 0), first)
        (tmp_path / path).write_bytes(b"PK\x03\x04cut off")
        assert torch.equal(make("a", 0), first)

        def killed(path, **arrays):
            path.write_bytes(b"PK")
            raise KeyboardInterrupt

        before = (tmp_path / path).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr("numpy.savez", killed)
            with pytest.raises(KeyboardInterrupt):
                make("b", 1)
        assert (tmp_path / path).read_bytes() == before


def test_whitening_makes_latents_white_and_changes_no_picture():
    from diffusers import AutoencoderKL

    from ovseg.clipart.training.autoencoder import whiten

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = AutoencoderKL(**blocks, block_out_channels=(8,), norm_num_groups=4, latent_channels=3)
    vae.double().eval()
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        before = vae.encode(x).latent_dist.mode()
        picture = vae.decode(before).sample
        whiten(vae, before)
        after = vae.encode(x).latent_dist.mode()
        again = vae.decode(after).sample
    values = after.movedim(1, 0).flatten(1)
    assert torch.allclose(values.mean(1), torch.zeros(3).double(), atol=1e-6)
    assert torch.allclose(torch.cov(values), torch.eye(3).double(), atol=1e-5)
    assert torch.allclose(again, picture, atol=1e-5)


def test_two_processes_train_as_one_that_sees_both_batches(tmp_path):
    """Each takes every second batch and the gradients are averaged."""
    import subprocess
    import sys

    script = tmp_path / "fit.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from ovseg.clipart.training.loop import first_process_first, train\n"
        "batches = int(sys.argv[2])\n"
        "model = torch.nn.Linear(2, 3)\n"
        "torch.nn.init.ones_(model.weight), torch.nn.init.zeros_(model.bias)\n"
        "def loss(step):\n"
        "    total = 0\n"
        "    for n in range(step * batches, (step + 1) * batches):\n"
        "        x = torch.randn(4, 2, generator=torch.Generator().manual_seed(n))\n"
        "        total = total + (model(x) - x.sum(1, keepdim=True)).square().mean() / batches\n"
        "    return total\n"
        "train('m', model, loss, steps=5, lr=0.1, out=Path(sys.argv[1]), warmup=1, muon=True)\n"
        "with first_process_first() as first:\n"
        "    assert first != Path(sys.argv[1], 'there').exists()\n"
        "    Path(sys.argv[1], 'there').touch()\n"
    )
    both, one = tmp_path / "both", tmp_path / "one"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # it takes a GPU for each process
    subprocess.run([*launch, script, both, "1"], env=environment, check=True)
    subprocess.run([sys.executable, script, one, "2"], env=environment, check=True)
    states = [torch.load(folder / "m.pt", weights_only=True)["model"] for folder in (both, one)]
    assert all(torch.allclose(states[0][k], states[1][k], atol=1e-6) for k in states[0])


def test_the_shipped_backbone_fits_stage_four_and_its_tower_gives_embeddings():
    from ovseg.clipart.training.backbone import Tower, segmenter_model
    from ovseg.segmenters.mmseg import MMSegSegmenter

    model = segmenter_model()
    fresh, trained = (
        MMSegSegmenter(21, model=model, pretrained=source).model.backbone
        for source in (None, "clipart")
    )
    assert not torch.equal(fresh.layer1[0].conv1.weight, trained.layer1[0].conv1.weight)
    trained.eval()  # MMSegmentation's returns nothing
    tower = Tower(trained, model["decode_head"]["in_channels"], 64)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    whole, patches = tower(images)
    assert whole.shape == (2, 64) and patches.shape == (2, 64, 64)  # 8x8 patches
    pixels = (images + 1) * 127.5  # what the segmenter sees of the same pictures
    segmenter = MMSegSegmenter(21, model=model)
    maps = trained(segmenter.normalise(pixels))[-1]
    assert torch.allclose(tower.patch(maps.flatten(2).transpose(1, 2)), patches, atol=1e-4)
