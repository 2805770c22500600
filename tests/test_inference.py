"""Windows, mirror images and sizes, against MMSegmentation's own inference and plain loops."""

import pytest
import torch
import torch.nn.functional as F
from acme.segmenter import PixelSegmenter
from test_segmenters_mmseg import model

from ovseg.inference import Inference
from ovseg.segmenters.base import Segmenter
from ovseg.segmenters.mmseg import MMSegSegmenter


class Places(Segmenter):
    """Logits that are the place of a pixel in what is seen, and the mean of what is seen."""

    def forward(self, images):
        height, width = images.shape[2:]
        rows = torch.arange(height).float()[:, None].expand(height, width)
        columns = torch.arange(width).float().expand(height, width)
        mean = images.float().mean((1, 2, 3))[:, None, None].expand(-1, height, width)
        place = torch.stack([rows, columns]).expand(len(images), -1, -1, -1)
        return torch.cat([place, mean[:, None]], dim=1)

    def loss(self, images, labels):
        raise NotImplementedError


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 50, 37), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("crop", "stride"), [(32, 16), (24, 24), (64, 40)])
def test_windows_are_mmsegmentations(crop, stride, images):
    torch.manual_seed(0)
    test_cfg = {"mode": "slide", "crop_size": [crop, crop], "stride": [stride, stride]}
    theirs = MMSegSegmenter(4, model=model(test_cfg=test_cfg)).eval()
    whole = MMSegSegmenter(4, model=model()).eval()
    whole.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        expected = theirs(images)
        found = Inference(crop=crop, stride=stride)(whole, images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_windows_by_loops(images):
    found = Inference(crop=20, stride=15)(Places(3), images)
    tops, lefts = [0, 15, 30], [0, 15, 17]
    for y, x in ((0, 0), (16, 3), (49, 36), (31, 18), (19, 16)):
        windows = [(t, left) for t in tops for left in lefts if t <= y < t + 20]
        windows = [(t, left) for t, left in windows if left <= x < left + 20]
        rows = sum(y - t for t, _ in windows) / len(windows)
        columns = sum(x - left for _, left in windows) / len(windows)
        seen = [images[1, :, t : t + 20, left : left + 20].float().mean() for t, left in windows]
        expected = torch.tensor([rows, columns, sum(seen) / len(seen)])
        torch.testing.assert_close(found[1, :, y, x], expected)


def test_mirror_images_and_sizes_are_averaged(images):
    torch.manual_seed(1)
    net = PixelSegmenter(4).eval()
    with torch.no_grad():
        large = F.interpolate(images.float(), (100, 74), mode="bilinear")
        small = F.interpolate(images.float(), (25, 18), mode="bilinear", antialias=True)
        logits = [net(seen) for seen in (images, large, small)]
        logits += [net(seen.flip(3)).flip(3) for seen in (images, large, small)]
        expected = sum(F.interpolate(one, (50, 37), mode="bilinear") for one in logits) / 6
        found = Inference(flips=True, scales=[1, 2.0, 0.5])(net, images)
    torch.testing.assert_close(found, expected)
    found = Inference(flips=True)(Places(3), images)
    assert (found[:, 1] == 18).all()  # the mean of a column's place and its mirror image's


def test_nothing_asked_for_changes_nothing(images):
    net = PixelSegmenter(4).eval()
    assert torch.equal(Inference()(net, images), net(images))
    described = Inference(crop=8, scales=(1,)).describe()
    assert described == {"crop": 8, "stride": 8, "flips": False, "scales": [1.0]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stride": 3}, "give crop"),
        ({"crop": 4, "stride": 5}, "stride must be between 1 and crop, got 5 and 4"),
        ({"crop": 8, "stride": 0}, "stride must be between 1 and crop, got 0 and 8"),
        ({"crop": 8, "stride": -1}, "stride must be between 1 and crop, got -1 and 8"),
        ({"crop": 0}, "crop must be >= 1, or null to see the whole image, got 0"),
        ({"crop": 0, "stride": 0}, "crop must be >= 1"),
        ({"stride": 0}, "give crop"),
        ({"scales": []}, "at least one"),
        ({"scales": [1, 0]}, "positive"),
    ],
)
def test_bad_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Inference(**wrong)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ""),
        ({"flips": True}, ""),  # the protocol says so
        ({"crop": 512}, "seen in windows of 512 pixels"),
        ({"crop": 512, "stride": 341}, "seen in windows of 512 pixels every 341"),
        ({"scales": [0.5, 1, 1.75]}, "seen scaled by 0.5, 1, 1.75"),
        ({"crop": 9, "scales": [2]}, "seen in windows of 9 pixels and scaled by 2"),
    ],
)
def test_it_says_what_is_not_the_image_as_it_is(arguments, words):
    assert Inference(**arguments).in_words() == words
