import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ovseg.errors import mmseg_hint
from ovseg.losses_segmentation import Bootstrapped, CrossEntropy
from ovseg.segmenters.mmseg import MMSegSegmenter

CONFIGS = Path(__file__).parents[1] / "configs" / "segmenters"

NORM = {"type": "SyncBN"}


def model(head: str = "ASPPHead", **changes) -> dict:
    """Return a very small DeepLab."""
    more = {"c1_in_channels": 8, "c1_channels": 4} if head.startswith("Depth") else {}
    backbone = {
        "type": "ResNetV1c",
        "depth": 18,
        "base_channels": 8,
        "stem_channels": 8,
        "num_stages": 2,
        "strides": [1, 1],
        "dilations": [1, 2],
        "out_indices": [0, 1],
        "norm_cfg": NORM,
    }
    decode_head = {
        "type": head,
        "in_channels": 16,
        "in_index": 1,
        "channels": 8,
        "dilations": [1, 2],
        "num_classes": 19,
        "norm_cfg": NORM,
        **more,
    }
    auxiliary = {
        "type": "FCNHead",
        "in_channels": 8,
        "in_index": 0,
        "channels": 4,
        "num_convs": 1,
        "concat_input": False,
        "num_classes": 19,
        "norm_cfg": NORM,
        "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 0.4},
    }
    parts = {"backbone": backbone, "decode_head": decode_head, "auxiliary_head": auxiliary}
    return {"type": "EncoderDecoder", **parts, **changes}


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def segmenter() -> MMSegSegmenter:
    torch.manual_seed(0)
    return MMSegSegmenter(4, model=model()).eval()


@pytest.mark.parametrize("head", ["ASPPHead", "DepthwiseSeparableASPPHead"])
@pytest.mark.parametrize("upscale", [1, 2])
def test_logits_have_the_size_of_the_image(head, upscale, images):
    net = MMSegSegmenter(4, model=model(head), upscale=upscale)
    labels = torch.randint(0, 4, (2, 32, 48))
    net.loss(images, labels).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.eval()(images).shape == (2, 4, 32, 48)
    assert net.model.auxiliary_head.num_classes == 4
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in net.modules())


def test_loss_is_the_heads_cross_entropy_over_the_pixels_that_count(segmenter, images):
    labels = torch.randint(0, 4, (2, 32, 48), generator=torch.Generator().manual_seed(1))
    labels[:, :20] = 255
    net = segmenter.model
    with torch.no_grad():
        maps = net.extract_feat(segmenter.normalise(images))
        total = 0.0
        for head, weight in ((net.decode_head, 1.0), (net.auxiliary_head, 0.4)):
            logits = torch.nn.functional.interpolate(head(maps), (32, 48), mode="bilinear")
            total += weight * torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)
        assert segmenter.loss(images, labels).item() == pytest.approx(total.item(), rel=1e-5)
        assert segmenter.loss(images, torch.full_like(labels, 255)).item() == 0


def test_eval_does_not_depend_on_the_batch(segmenter, images):
    with torch.no_grad():
        together = segmenter(images)
        alone = torch.cat([segmenter(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_slide_mode_of_the_test_config(images):
    test_cfg = {"mode": "slide", "crop_size": [32, 32], "stride": [16, 16]}
    net = MMSegSegmenter(4, model=model(test_cfg=test_cfg), upscale=2).eval()
    with torch.no_grad():
        assert net(images).shape == (2, 4, 32, 48)


def test_rebuilds_from_its_arguments(segmenter, images, tmp_path):
    save_file(segmenter.state_dict(), tmp_path / "net.safetensors")
    again = MMSegSegmenter(
        4, checkpoint=str(tmp_path / "net.safetensors"), **segmenter.init_args
    ).eval()
    torch.save(
        {"state_dict": segmenter.model.state_dict(), "meta": {"epoch": 3}}, tmp_path / "a.pth"
    )
    third = MMSegSegmenter(4, model=model(), checkpoint=str(tmp_path / "a.pth")).eval()
    with torch.no_grad():
        assert torch.equal(again(images), segmenter(images))
        assert torch.equal(third(images), segmenter(images))


def test_pretrained_backbone_alone(segmenter, tmp_path):
    path = tmp_path / "backbone.pth"
    torch.save({**segmenter.model.backbone.state_dict(), "fc.weight": torch.zeros(1)}, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no word on the weights that the config names
        net = MMSegSegmenter(9, model=model(pretrained="open-mmlab://x"), pretrained=str(path))
    for ours, theirs in zip(
        net.model.backbone.parameters(), segmenter.model.backbone.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_weights_named_by_the_config_are_not_fetched():
    init = {"type": "Pretrained", "checkpoint": "open-mmlab://resnet18_v1c"}
    with pytest.warns(UserWarning, match="open-mmlab://resnet18_v1c.*not fetched"):
        MMSegSegmenter(4, model=model(init_cfg=init))


def test_config_file(images, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(f"model = {model()!r}\nmodel['data_preprocessor'] = dict(type='X')\n")
    assert MMSegSegmenter(4, config=str(path)).eval()(images).shape == (2, 4, 32, 48)
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="has no `model`"):
        MMSegSegmenter(4, config=str(path))


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_bad_input_is_named(segmenter, tmp_path):
    with pytest.raises(ValueError, match="exactly one of model"):
        MMSegSegmenter(4)
    with pytest.raises(ValueError, match="upscale"):
        MMSegSegmenter(4, model=model(), upscale=0)
    with pytest.raises(ValueError, match="cannot build.*NoHead"):
        MMSegSegmenter(4, model=model("NoHead"))
    with pytest.raises(FileNotFoundError, match=r"no\.pth"):
        MMSegSegmenter(4, model=model(), checkpoint="no.pth")
    with pytest.raises(FileNotFoundError, match=r"no\.py"):
        MMSegSegmenter(4, config="no.py")
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="pickled objects"):
        MMSegSegmenter(4, model=model(), checkpoint=str(tmp_path / "evil.pth"))
    save_file(segmenter.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="net.safetensors has 4 classes, 5 are wanted: set data"):
        MMSegSegmenter(5, model=model(), checkpoint=str(tmp_path / "net.safetensors"))


def test_a_missing_system_library_is_named():
    hint = mmseg_hint(ImportError("libGL.so.1: cannot open shared object file"))
    assert "libgl1" in hint and "\n" not in hint
    assert "onedl-mmsegmentation" in mmseg_hint(ImportError("No module named 'mmseg'"))


SWIN = 28_288_354 - 769_000 - 1_536 + 2_880  # Swin-T less its classifier, more four output norms
STEM = 864 + 9_216 + 18_432 + 64 + 64 + 128 - 9_408 - 128  # three convolutions for one of 7 x 7
PUBLISHED = {  # backbones less their classifiers (2048 x 1000 + 1000), and MMSegmentation's config
    "fcn_r50": (25_557_032 - 2_049_000 + STEM, "fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py"),
    "deeplabv3_r101": (
        44_549_160 - 2_049_000 + STEM,
        "deeplabv3/deeplabv3_r101-d8_4xb4-20k_voc12aug-512x512.py",
    ),
    "deeplabv3plus_r101": (
        44_549_160 - 2_049_000 + STEM,
        "deeplabv3plus/deeplabv3plus_r101-d8_4xb4-20k_voc12aug-512x512.py",
    ),
    "upernet_swin_tiny": (
        SWIN,
        "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_configurations_are_the_published_ones(name):
    """Built as MMSegmentation's own configuration is; it needs no compiled operator."""
    import mmseg

    count, config = PUBLISHED[name]
    parts = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["init_args"]
    net = MMSegSegmenter(21, **parts)
    with pytest.warns(UserWarning, match="are not fetched"):
        theirs = MMSegSegmenter(
            21, config=str(Path(mmseg.__file__).parent / ".mim/configs" / config)
        )
    assert sum(p.numel() for p in net.model.backbone.parameters()) == count
    assert str(net.model) == str(theirs.model)
    images, labels = torch.zeros(2, 3, 64, 64).byte(), torch.zeros(2, 64, 64).long()
    if "r101" in name:
        with torch.no_grad():
            assert net.eval()(images).shape == (2, 21, 64, 64)
    else:
        net.loss(images, labels).backward()
        assert all(p.grad is not None for p in net.parameters())


def test_a_loss_of_ones_own_takes_the_place_of_every_heads(segmenter, images):
    labels = torch.randint(0, 4, (2, 32, 48), generator=torch.Generator().manual_seed(1))
    labels[:, :20] = 255
    state = segmenter.state_dict()
    for loss in (CrossEntropy(), Bootstrapped(0.6)):
        net = MMSegSegmenter(4, model=model(), loss=loss).eval()
        net.load_state_dict(state)
        with torch.no_grad():
            maps = net.model.extract_feat(net.normalise(images))
            total = 0.0
            for head, weight in ((net.model.decode_head, 1.0), (net.model.auxiliary_head, 0.4)):
                logits = torch.nn.functional.interpolate(head(maps), (32, 48), mode="bilinear")
                total += weight * loss(logits, labels).item()
            assert net.loss(images, labels).item() == pytest.approx(total, rel=1e-5)
            if isinstance(loss, CrossEntropy):
                assert segmenter.loss(images, labels).item() == pytest.approx(total, rel=1e-5)
            assert net.loss(images, torch.full_like(labels, 255)).item() == 0


def test_what_has_no_place_for_a_loss_is_named():
    sampled = model()
    sampled["decode_head"]["sampler"] = {"type": "OHEMPixelSampler", "thresh": 0.7}
    with pytest.raises(ValueError, match="ASPPHead chooses its pixels by a sampler"):
        MMSegSegmenter(4, model=sampled, loss=CrossEntropy())


@pytest.mark.parametrize(
    ("operator", "part", "changes"),
    [
        ("PSAMask", "decode_head", {"type": "PSAHead", "mask_size": (5, 5), "dilations": None}),
        ("CrissCrossAttention", "decode_head", {"type": "CCHead", "dilations": None}),
        (
            "DCNv2",
            "backbone",
            {"depth": 50, "dcn": {"type": "DCNv2"}, "stage_with_dcn": (False, True)},
        ),
    ],
)
def test_a_missing_compiled_operator_is_named(operator, part, changes):
    import importlib.util

    if importlib.util.find_spec("mmcv._ext"):
        pytest.skip("mmcv has them here")
    wanted = model()
    wanted[part] = {k: v for k, v in {**wanted[part], **changes}.items() if v is not None}
    with pytest.raises(ValueError, match=rf"compiled operator of mmcv, {operator}, .*install") as e:
        MMSegSegmenter(4, model=wanted)
    assert "\n" not in str(e.value)


def test_losses_are_mmsegmentations_without_its_accuracy():
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    head = {"type": "FCNHead", "in_channels": 8, "in_index": 0, "channels": 4, "num_classes": 21}
    cross = {"type": "CrossEntropyLoss"}
    two = [cross, {**cross, "loss_name": "loss_more", "loss_weight": 0.5}, cross]
    hard = {"type": "OHEMPixelSampler", "thresh": 0.9, "min_kept": 50}
    heads = [{**head, "loss_decode": two}, {**head, "sampler": hard, "align_corners": True}]
    torch.manual_seed(0)
    network = MMSegSegmenter(21, model=model(auxiliary_head=heads)).model
    labels = torch.randint(0, 21, (2, 1, 16, 21))
    labels[0, :, :4] = 255
    samples = [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=one)) for one in labels]
    for part in network.auxiliary_head:
        logits = torch.randn(2, 21, 6, 11)
        theirs = BaseDecodeHead.loss_by_feat(part, logits, samples)
        assert theirs.pop("acc_seg").shape == (1,)
        ours = part.loss_by_feat(logits, samples)
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
