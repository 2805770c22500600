import pytest
import torch

from ovseg.augment import Augmentation


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return images, images[:, 0].long()


def test_nothing_asked_for_changes_nothing(batch):
    images, labels = Augmentation(mirror=0)(*batch, step=3)
    torch.testing.assert_close(images, batch[0].float(), atol=1e-3, rtol=0)
    assert torch.equal(labels, batch[1])


def test_mirrors_image_and_labels_together(batch):
    images, labels = Augmentation(mirror=0.5)(*batch, step=1)
    mirrored = (labels == batch[1].flip(2)).flatten(1).all(dim=1)
    kept = (labels == batch[1]).flatten(1).all(dim=1)
    assert (mirrored ^ kept).all() and 16 < mirrored.sum() < 48
    torch.testing.assert_close(
        images[mirrored], batch[0][mirrored].flip(3).float(), atol=1e-3, rtol=0
    )


def test_moves_image_and_labels_alike():
    labels = torch.zeros(32, 32, 32, dtype=torch.long)
    labels[:, 8:20, 8:20] = 7
    images = (labels[:, None] * 10).expand(-1, 3, -1, -1).to(torch.uint8)
    seen, ids = Augmentation(scale=1.5, turn=30, shift=0.2)(images, labels, step=5)
    assert set(ids.unique().tolist()) == {0, 7}
    agree = (seen[:, 0] > 35) == (ids == 7)
    assert agree.float().mean() > 0.99
    assert len({int((view == 7).sum()) for view in ids}) > 10  # each in its own way


def test_recolours_without_touching_labels(batch):
    images, labels = Augmentation(mirror=0, recolour=1.0)(*batch, step=2)
    assert torch.equal(labels, batch[1])
    before = batch[0].float().sort(dim=1).values
    after = images.sort(dim=1).values
    plain = (after - before).abs().flatten(1).amax(1) < 1e-2
    inverted = (255 - after.flip(1) - before).abs().flatten(1).amax(1) < 1e-2
    assert (plain ^ inverted).all() and 16 < inverted.sum() < 48
    assert ((images - batch[0].float()).abs().flatten(1).amax(1) > 1).sum() > 40


def test_a_view_is_a_function_of_seed_step_and_rank(batch):
    wild = {"scale": 1.5, "turn": 20.0, "recolour": 0.5}
    first = Augmentation(**wild)(*batch, step=4)
    torch.manual_seed(99)
    again = Augmentation(**wild)(*batch, step=4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for seed, step, rank in ((0, 5, 0), (0, 4, 1), (1, 4, 0)):
        other = Augmentation(**wild, seed=seed)(*batch, step=step, rank=rank)
        assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("wrong", [{"mirror": 2}, {"scale": 0.5}, {"shift": 1.0}, {"recolour": -1}])
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        Augmentation(**wrong)


def test_mixed_precision_moves_no_pixel():
    """At 512 pixels bfloat16 cannot tell a place from its neighbours'."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 512, 512), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 20, (1, 512, 512), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        views, ids = Augmentation(mirror=0)(images, labels, step=0)
        turned = Augmentation(turn=10, scale=1.2)(images, labels, step=3)
    assert torch.equal(ids, labels) and views.dtype == torch.float32
    torch.testing.assert_close(views, images.float(), atol=0.01, rtol=0)
    plain = Augmentation(turn=10, scale=1.2)(images, labels, step=3)
    assert all(torch.equal(a, b) for a, b in zip(turned, plain, strict=True))
