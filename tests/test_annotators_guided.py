"""ovseg.annotators.guided: masks that follow the edges of the image, against a plain loop."""

import sys

import numpy as np
import pytest
import torch
from acme.annotator import ColorAnnotator
from acme.backbone import ToyBackbone
from toy_data import request

from ovseg.annotators.guided import GuidedAnnotator
from ovseg.structures import Annotation
from ovseg.vocabulary import Vocabulary

pytest.importorskip("kornia", reason="the extra `guided`: pip install kornia")


class Coarse(ColorAnnotator):
    """The true masks as they look on a grid of 8 x 8, enlarged."""

    def annotate(self, sample):
        right = super().annotate(sample)
        small = torch.nn.functional.avg_pool2d(right.masks, 4)
        soft = torch.nn.functional.interpolate(small, scale_factor=4, mode="bilinear")
        return Annotation(soft, right.scores, right.found, right.instances)


@pytest.fixture
def sample():
    prompts = ("a photo of a car and a fish", ("car", "fish")), ("a photo of a key", ("key",))
    return ToyBackbone(size=32).sample([request(i, p, *n) for i, (p, n) in enumerate(prompts)])


def bound(annotator, **arguments):
    made = GuidedAnnotator(annotator, **arguments)
    made.bind(Vocabulary.load("clipart", "1"))
    return made


def guided_loop(image, mask, radius, eps):
    """He et al., equations 14 to 16, window by window; image (H, W, 3), mask (H, W), float64."""
    window = 2 * radius + 1
    around = ((radius, radius), (radius, radius))
    colours = np.pad(image, (*around, (0, 0)), mode="reflect")
    values = np.pad(mask, around, mode="reflect")
    height, width = mask.shape
    slopes, offsets = np.zeros((height, width, 3)), np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            pixels = colours[y : y + window, x : x + window].reshape(-1, 3)
            wanted = values[y : y + window, x : x + window].ravel()
            mean = pixels.mean(axis=0)
            variance = (pixels - mean).T @ (pixels - mean) / len(pixels)
            covariance = (pixels - mean).T @ (wanted - wanted.mean()) / len(pixels)
            slopes[y, x] = np.linalg.solve(variance + eps * np.eye(3), covariance)
            offsets[y, x] = wanted.mean() - slopes[y, x] @ mean
    slopes = np.pad(slopes, (*around, (0, 0)), mode="reflect")
    offsets = np.pad(offsets, around, mode="reflect")
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            here = slice(y, y + window), slice(x, x + window)
            result[y, x] = slopes[here].mean(axis=(0, 1)) @ image[y, x] + offsets[here].mean()
    return result.clip(0, 1)


def test_as_the_paper_writes_it(sample):
    noise = torch.randint(0, 256, sample.images.shape, generator=torch.Generator().manual_seed(0))
    sample.images = (sample.images // 2 + noise // 2).to(torch.uint8)  # no two windows alike
    made = bound(Coarse(), radius=2, eps=0.01)
    before, after = made.annotator.annotate(sample).masks, made.annotate(sample).masks
    for row, column in ((0, 0), (0, 1), (1, 0)):
        image = sample.images[row].permute(1, 2, 0).double().numpy() / 255
        expected = guided_loop(image, before[row, column].double().numpy(), 2, 0.01)
        np.testing.assert_allclose(after[row, column].numpy(), expected, atol=2e-4)


def test_coarse_masks_move_to_the_edges(sample):
    made = bound(Coarse("all", instances=True), radius=4)
    true = ColorAnnotator()
    true.bind(made.vocabulary)
    right, coarse, guided = (part.annotate(sample) for part in (true, made.annotator, made))

    def iou(found):
        mine, theirs = found.masks >= 0.5, right.masks >= 0.5
        either = (mine | theirs).sum((2, 3))
        return ((mine & theirs).sum((2, 3)) / either.clamp(min=1))[either > 0]

    assert (iou(guided) > iou(coarse)).all() and iou(guided).min() > 0.94 > iou(coarse).max()
    assert torch.equal(guided.scores, coarse.scores) and torch.equal(guided.found, coarse.found)
    assert coarse.instances is not None and guided.instances is None
    assert guided.masks.min() >= 0 and guided.masks.max() <= 1


def test_what_it_says_of_itself():
    made = bound(ColorAnnotator("seen"), radius=3, eps=0.01)
    facts, own = made.describe(), made.annotator.describe()
    assert facts["digest"] == f"{own['digest']}+guided 3 0.01"
    assert facts["guided"] == {"radius": 3, "eps": 0.01}
    assert facts["requested_classes"] == own["requested_classes"]
    assert facts["trained_on"] == own["trained_on"]


def test_errors(sample, monkeypatch):
    with pytest.raises(ValueError, match="radius must be >= 1 and eps > 0, got 0 and 0.001"):
        GuidedAnnotator(ColorAnnotator(), radius=0)
    with pytest.raises(ValueError, match="window of 33 pixels does not fit into images of 32 x 32"):
        bound(ColorAnnotator(), radius=16).annotate(sample)
    monkeypatch.setitem(sys.modules, "kornia.filters", None)
    with pytest.raises(ImportError, match=r"by kornia \(.*\): pip install 'ovseg\[guided\]'"):
        GuidedAnnotator(ColorAnnotator())
