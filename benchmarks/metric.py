"""What scoring a test set costs: our metric, MMSegmentation's loop over images, and a bincount.

    python benchmarks/metric.py --out runs/benchmarks/metric.json

All three score the same label maps, at the size of PASCAL VOC and at the clip-art world's, and must
agree: exactly in areas, to 1e-6 in IoU. *Loop* is what `IoUMetric.process` does with a batch, one
image after the other; *ours* gives the same function a whole batch at once, after checking ids;
*bincount* is the confusion matrix by `torch.bincount`.
"""

from __future__ import annotations

import torch
from common import finish, interleave, parser, ratios, spread
from torch import Tensor

from ovseg.metrics import SegmentationIoU, mmseg_iou_metric
from ovseg.structures import IGNORE

CLASSES = 21
SETS = {"voc": (16, 375, 500), "clipart": (512, 64, 64)}


def label_maps(images: int, height: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Return predictions and labels in blocks of 8x8 that agree on about five of six pixels."""
    generator = torch.Generator().manual_seed(0)
    shape = (images, -(-height // 8), -(-width // 8))
    blocks = torch.randint(0, CLASSES, shape, generator=generator)
    labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width].clone()
    noise = torch.randint(0, CLASSES, labels.shape, generator=generator)
    draw = torch.rand(labels.shape, generator=generator)
    predictions = torch.where(draw < 0.16, noise, labels)
    labels[draw > 0.95] = IGNORE
    return predictions.to(device), labels.to(device)


def ours(predictions: Tensor, labels: Tensor) -> Tensor:
    """Return IoU per class by our metric, in batches of 16."""
    metric = SegmentationIoU(CLASSES, range(1, 16), range(16, CLASSES)).to(labels.device)
    for part in zip(predictions.split(16), labels.split(16), strict=True):
        metric.update(*part)
    return metric.compute()["per_class"] / 100


def loop(predictions: Tensor, labels: Tensor) -> Tensor:
    """Return IoU per class by MMSegmentation's loop."""
    score = mmseg_iou_metric()
    results = [
        score.intersect_and_union(prediction, label, CLASSES, IGNORE)
        for prediction, label in zip(predictions, labels, strict=True)
    ]
    totals = [sum(areas) for areas in zip(*results, strict=True)]
    return torch.from_numpy(score.total_area_to_metrics(*totals)["IoU"])


def bincount(predictions: Tensor, labels: Tensor) -> Tensor:
    """Return IoU per class by a confusion matrix, in batches of 16."""
    matrix = torch.zeros(CLASSES, CLASSES, dtype=torch.long, device=labels.device)
    for prediction, label in zip(predictions.split(16), labels.split(16), strict=True):
        counted = label != IGNORE
        cells = label[counted] * CLASSES + prediction[counted]
        matrix += torch.bincount(cells, minlength=CLASSES**2).view(CLASSES, CLASSES)
    both = matrix.diagonal()
    return (both / (matrix.sum(0) + matrix.sum(1) - both)).cpu()


def main() -> dict:
    """Measure both sizes."""
    arguments = parser(__doc__.splitlines()[0], repeats=7)
    args = arguments.parse_args()
    result = {}
    for name, shape in SETS.items():
        maps = label_maps(*shape, args.device)
        wanted = loop(*maps).double()
        for form in (ours, bincount):
            torch.testing.assert_close(form(*maps).double(), wanted, rtol=1e-6, atol=1e-6)
        cases = {f.__name__: (lambda f=f, maps=maps: f(*maps)) for f in (ours, loop, bincount)}
        seconds = interleave(cases, args.repeats, args.device)
        pixels = maps[0].numel() / 1e6
        result[name] = {
            "images": shape[0],
            "megapixels_per_second": {
                form: spread([pixels / s for s in times]) for form, times in seconds.items()
            },
            "loop_over_ours": ratios(seconds["loop"], seconds["ours"]),
            "bincount_over_ours": ratios(seconds["bincount"], seconds["ours"]),
        }
    return finish("metric", result, args.device, args.out)


if __name__ == "__main__":
    main()
