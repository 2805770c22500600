import pytest
import torch

from ovseg.metrics import (
    GroundingIoU,
    SegmentationIoU,
    confusion,
    confusion_iou,
    harmonic,
    mmseg_iou_metric,
)
from ovseg.structures import IGNORE


def by_loops(predictions, labels, num_classes):
    """IoU per class in percent from counting pixel by pixel, None where the union is empty."""
    inter, union = [0] * num_classes, [0] * num_classes
    for p, t in zip(predictions.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if t == IGNORE:
            continue
        inter[p] += p == t
        for c in {p, t}:
            union[c] += 1
    return [100 * i / u if u else None for i, u in zip(inter, union, strict=True)]


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 5, (6, 9, 7), generator=generator)
    predictions = torch.where(
        torch.rand(labels.shape, generator=generator) < 0.5,
        labels,
        torch.randint(0, 5, labels.shape, generator=generator),
    )
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORE
    return predictions, labels


def test_counts_pixels(images):
    metric = SegmentationIoU(6, seen=[1, 2, 5], unseen=[3, 4])
    for predictions, labels in zip(*(part.split(2) for part in images), strict=True):
        metric.update(predictions, labels)
    scores, truth = metric.compute(), by_loops(*images, 6)
    assert scores["per_class"][:5].tolist() == pytest.approx(truth[:5])
    assert truth[5] is None and scores["per_class"][5].isnan()  # absent: left out, not zero
    seen, unseen = (truth[1] + truth[2]) / 2, (truth[3] + truth[4]) / 2
    assert scores["seen"].item() == pytest.approx(seen)
    assert scores["unseen"].item() == pytest.approx(unseen)
    assert scores["harmonic"].item() == pytest.approx(2 * seen * unseen / (seen + unseen))
    assert scores["mean"].item() == pytest.approx(sum(truth[1:5]) / 4)
    assert scores["background"].item() == pytest.approx(truth[0])


def test_equals_mmseg_image_by_image(images):
    score = mmseg_iou_metric()
    parts = [score.intersect_and_union(p, t, 6, IGNORE) for p, t in zip(*images, strict=True)]
    totals = [sum(column) for column in zip(*parts, strict=True)]
    import numpy as np

    with np.errstate(all="ignore"):
        iou = score.total_area_to_metrics(*totals)["IoU"]
    metric = SegmentationIoU(6, seen=[1], unseen=[2])
    metric.update(*images)
    ours = metric.compute()["per_class"].numpy() / 100
    np.testing.assert_allclose(ours[:5], iou[:5], rtol=1e-6)


def test_background_in_the_mean_and_background_scored_are_two_things(images):
    truth = by_loops(*images, 5)
    inside = SegmentationIoU(5, [1, 2], [3, 4], background_in_mean=True)
    inside.update(*images)
    assert inside.compute()["seen"].item() == pytest.approx(sum(truth[:3]) / 3)
    predictions, labels = images
    ignored = SegmentationIoU(5, [1, 2], [3, 4], score_background=False)
    ignored.update(predictions, labels)
    without = by_loops(predictions, labels.masked_fill(labels == 0, IGNORE), 5)
    assert ignored.compute()["per_class"][1:].tolist() == pytest.approx(without[1:])
    assert without[1] > truth[1]
    with pytest.raises(ValueError, match="score_background"):
        SegmentationIoU(5, [1], [2], background_in_mean=True, score_background=False)


def test_pixels_of_seen_classes_can_be_ignored(images):
    predictions, labels = images
    metric = SegmentationIoU(5, [1, 2], [3, 4], score_background=False, score_seen=False)
    metric.update(predictions, labels)
    unseen = labels.masked_fill(labels < 3, IGNORE)
    truth = by_loops(predictions, unseen, 5)
    assert metric.compute()["unseen"].item() == pytest.approx((truth[3] + truth[4]) / 2)
    with pytest.raises(ValueError, match="label.*got 7"):
        metric.update(predictions, labels.masked_fill(labels == 3, 7))


def test_areas_of_images_add_up_to_those_of_all(images):
    whole, kept = (SegmentationIoU(5, [1, 2], [3, 4]) for _ in range(2))
    whole.update(*images)
    kept.update(*images, torch.arange(6))
    assert torch.equal(whole.areas, kept.areas)
    numbers, areas = kept.images()
    assert numbers.tolist() == list(range(6))
    assert areas.sum(0).tolist() == whole.areas[[0, 1, 3]].tolist()


def test_a_prediction_of_255_or_a_foreign_label_is_refused():
    metric = SegmentationIoU(3, [1], [2])
    zeros = torch.zeros(1, 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="prediction.*0..2, got 255"):
        metric.update(zeros + 255, zeros)
    with pytest.raises(ValueError, match="label.*got 9"):
        metric.update(zeros, zeros + 9)
    with pytest.raises(ValueError, match="same shape"):
        metric.update(zeros, zeros[:, :1])
    metric.update(zeros, zeros + 255)
    assert not metric.areas.any()


def test_harmonic_of_zeros_is_zero():
    assert harmonic(torch.tensor(0.0), torch.tensor(0.0)) == 0
    assert harmonic(torch.tensor(0.0), torch.tensor(float("nan"))).isnan()


def scene():
    """Two images of 4x4: classes 1 (left half) and 2 (right half); class 1 (top row) alone."""
    targets = torch.zeros(2, 2, 4, 4)
    targets[0, 0, :, :2], targets[0, 1, :, 2:], targets[1, 0, 0] = 1, 1, 1
    ids = torch.tensor([[1, 2], [1, 0]])
    valid = torch.tensor([[True, True], [True, False]])
    return targets, torch.ones(2, 1, 4, 4, dtype=torch.bool), ids, valid


def test_grounding_iou_by_hand():
    targets, pixels, ids, valid = scene()
    masks = torch.zeros(2, 2, 4, 4)
    masks[0, 0, :, :3] = 0.9  # 8 of 12: IoU 8/12, with the other object 4/16
    masks[0, 1, :, 1:2] = 0.9  # misses its object, touches the other: IoU 0
    masks[1, 0, :2] = 0.9  # 4 of 8: IoU 1/2
    metric = GroundingIoU(3)
    metric.update(masks, targets, pixels, ids, valid)
    scores = metric.compute()
    assert scores["per_class"][0, 1].item() == pytest.approx(100 * (8 + 4) / (12 + 8))
    assert scores["per_class"][0, 2].item() == 0
    assert scores["per_class"][0, 0].isnan()
    assert scores["miou"].item() == pytest.approx(30.0)
    assert scores["miou_images"].item() == pytest.approx(100 * (8 / 12 + 0 + 1 / 2) / 3)
    assert scores["choice"].item() == pytest.approx(50.0)


def test_grounding_thresholds_and_ignored_pixels():
    targets, pixels, ids, valid = scene()
    pixels[1, 0, 1:] = False
    masks = torch.full((2, 2, 4, 4), 0.4)
    metric = GroundingIoU(3, thresholds=(0.3, 0.5))
    metric.update(masks, targets, pixels, ids, valid)
    scores = metric.compute()
    # all pixels: class 1 has 8 of 16 and, where only the top row counts, 4 of 4
    assert scores["per_class"][0, 1].item() == pytest.approx(100 * 12 / 20)
    assert scores["miou"].tolist() == pytest.approx([(60 + 50) / 2, 0.0])
    assert scores["choice"].tolist() == [0.0, 0.0]  # the same mask for both fits none better


def test_no_images_of_two_have_no_choice():
    targets, pixels, ids, valid = scene()
    metric = GroundingIoU(3)
    metric.update(targets[1:], targets[1:], pixels[1:], ids[1:], valid[1:])
    scores = metric.compute()
    assert scores["miou"].item() == 100
    assert scores["choice"].isnan().all()


def test_confusions_by_hand():
    labels = torch.tensor([[[0, 1, 1, IGNORE]], [[2, 2, 0, 0]]])
    predictions = torch.tensor([[[0, 1, 2, 0]], [[2, 2, 1, 0]]])
    found = confusion(predictions, labels, 3)
    assert found.tolist() == [
        [[1, 0, 0], [0, 1, 1], [0, 0, 0]],
        [[1, 1, 0], [0, 0, 0], [0, 0, 2]],
    ]
    assert confusion_iou(found[0]).tolist() == [100, 50, 0]
    assert confusion_iou(found.sum(0)).tolist() == pytest.approx([200 / 3, 100 / 3, 200 / 3])
    assert confusion_iou(found[:1, :1, :1] * 0).isnan().all()
