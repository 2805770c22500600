"""ovseg.annotators.assemble: regions and instances by hand."""

from __future__ import annotations

import torch

from ovseg.annotators.assemble import Instances, channels_of, from_instances, from_regions


def test_channels():
    channel, asked = channels_of(torch.tensor([[7, 0, 3], [2, 7, 9]]), {7: 0, 2: 4})
    assert channel.tolist() == [[0, 0, 0], [4, 0, 0]]
    assert asked.tolist() == [[True, False, False], [True, True, False]]


def test_regions():
    probabilities = torch.tensor([[[[0.6, 0.2, 0.1]], [[0.3, 0.5, 0.1]], [[0.1, 0.3, 0.8]]]])
    channel, asked = torch.tensor([[0, 1, 2]]), torch.tensor([[True, True, False]])
    annotation = from_regions(probabilities, channel, asked, 0.0, 0.55)
    expected = torch.tensor([[0.6 / 0.9, 0.2 / 0.7, 0.1 / 0.9], [0.3 / 0.9, 0.5 / 0.8, 0.1 / 0.9]])
    torch.testing.assert_close(annotation.masks[0, :2, 0], expected)
    assert (annotation.masks[0, 2] == 0).all() and annotation.instances is None
    torch.testing.assert_close(annotation.scores, torch.tensor([[0.6, 0.5, 0.0]]))
    assert annotation.found.tolist() == [[True, False, False]]  # the second is not sure enough


def test_instances():
    masks = torch.tensor(
        [[[0.9, 0.7, 0.1]], [[0.2, 0.8, 0.6]], [[0.4, 0.4, 0.4]], [[0.9, 0.9, 0.9]]]
    )
    scores = torch.tensor([0.6, 0.7, 0.8, 0.9])
    belongs = torch.tensor([[True, False], [True, False], [False, True], [False, False]])
    none = Instances(masks[:0], scores[:0], belongs[:0])
    annotation = from_instances([Instances(masks, scores, belongs), none])
    torch.testing.assert_close(annotation.masks[0, 0], torch.tensor([[0.9, 0.8, 0.6]]))
    assert (annotation.masks[0, 1] == 0).all()  # reaches 0.5 nowhere
    torch.testing.assert_close(annotation.scores, torch.tensor([[0.7, 0.0], [0.0, 0.0]]))
    assert annotation.found.tolist() == [[True, False], [False, False]]
    assert annotation.instances.tolist() == [[[2, 1, 1]], [[0, 0, 0]]]
