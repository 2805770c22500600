"""ovseg compare: the bootstrap against a plain loop, the estimates against MMSegmentation."""

import json
import warnings

import numpy as np
import pytest
import torch

from ovseg import compare as module
from ovseg.__main__ import main
from ovseg.metrics import SegmentationIoU, mmseg_iou_metric
from ovseg.protocol import Protocol
from ovseg.results import pack_images

SEEN, UNSEEN = [1, 2], [3, 4]
FACTS = Protocol(name="p", title="t", vocabulary="clipart", split="1").facts()


def label_maps(errors: float, seed: int = 1, images: int = 7):
    """Return predictions and labels ``(I, 6, 5)`` of five classes; class 4 in some images only."""
    truth = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (images, 6, 5), generator=truth)
    labels[::3, :2] = 4
    labels[:, 0, 0] = 255
    random = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 5, labels.shape, generator=random)
    wrong = torch.rand(labels.shape, generator=random) < errors
    return torch.where(wrong | (labels == 255), noise, labels), labels


def measured(predictions, labels, indices=None) -> SegmentationIoU:
    metric = SegmentationIoU(5, SEEN, UNSEEN)
    indices = torch.arange(len(labels)) if indices is None else indices
    metric.update(predictions, labels, indices)
    return metric


def write(folder, metric: SegmentationIoU, facts=FACTS, stream="val"):
    """Write what a test writes."""
    folder.mkdir()
    images = pack_images({stream: metric.images()}, SEEN, UNSEEN)
    (folder / "results_images.npz").write_bytes(images)
    scores = {key: round(float(metric.compute()[key]), 4) for key in module.SCORES}
    results = {stream: {**scores, "protocol": facts}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def tests(tmp_path):
    return [write(tmp_path / f"{n}", measured(*label_maps(e, n))) for n, e in ((1, 0.5), (2, 0.2))]


def by_loops(areas, draw) -> list[float]:
    """Return seen, unseen and harmonic mIoU of drawn images, one number at a time."""
    means = []
    for group in (SEEN, UNSEEN):
        values = []
        for c in group:
            inter = sum(int(areas[i][0][c]) for i in draw)
            union = sum(int(areas[i][1][c]) for i in draw)
            if union:
                values.append(100 * inter / union)
        means.append(sum(values) / len(values))
    s, u = means
    return [s, u, 2 * s * u / (s + u) if s + u else 0.0]


def test_the_bootstrap_is_that_of_a_plain_loop(tests, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 16)  # 50 resamples in four parts
    one, two = (module.read(folder)["val"] for folder in tests)
    result = module.compare(one, two, resamples=50, seed=3)
    random, differences = np.random.default_rng(3), []
    for rows in (16, 16, 16, 2):
        for draw in random.integers(7, size=(rows, 7)):
            scores = [by_loops(test.areas, draw) for test in (one, two)]
            differences.append([b - a for a, b in zip(*scores, strict=True)])
    assert len(differences) == 50
    for place, key in enumerate(module.SCORES):
        values = sorted(row[place] for row in differences)
        # linear between the order statistics around 2.5 % and 97.5 % of 49 gaps
        low = values[1] + (0.025 * 49 - 1) * (values[2] - values[1])
        high = values[47] + (0.975 * 49 - 47) * (values[48] - values[47])
        assert result[key]["low"] == pytest.approx(low, abs=1e-4)
        assert result[key]["high"] == pytest.approx(high, abs=1e-4)
        whole = [by_loops(test.areas, range(7))[place] for test in (one, two)]
        assert [result[key]["one"], result[key]["two"]] == pytest.approx(whole, abs=1e-4)
        assert result[key]["difference"] == pytest.approx(whole[1] - whole[0], abs=1e-4)
    assert result["seen"]["low"] > 0


def test_estimates_are_mmsegmentations():
    predictions, labels = label_maps(0.4)
    score = mmseg_iou_metric()
    pairs = zip(predictions, labels, strict=True)
    parts = [score.intersect_and_union(p, t, 5, 255) for p, t in pairs]
    totals = [sum(column) for column in zip(*parts, strict=True)]
    iou = 100 * score.total_area_to_metrics(*totals)["IoU"].astype(np.float64)
    seen, unseen = iou[SEEN].mean(), iou[UNSEEN].mean()
    expected = [seen, unseen, 2 * seen * unseen / (seen + unseen)]
    _, areas = measured(predictions, labels).images()
    assert module.score(areas.sum(0)[None], SEEN, UNSEEN)[0] == pytest.approx(expected, rel=1e-6)
    for image, (inter, union, _, truth) in zip(areas, parts, strict=True):
        assert np.array_equal(image, torch.stack([inter, union, truth]).numpy())


def test_groups_without_a_class_have_no_score():
    areas = np.array([[[0, 4, 0, 0, 0], [9, 8, 0, 0, 0]], [[0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]])
    with_one, zeros = module.score(areas, SEEN, UNSEEN)
    assert with_one[0] == 50 and np.isnan(with_one[1:]).all()
    assert zeros.tolist() == [0, 0, 0]


def test_the_verb(tests, tmp_path, capsys):
    out = tmp_path / "out.json"
    one, two = (str(folder) for folder in tests)
    assert main(["compare", one, f"{two}/results.json", "--seed", "5", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "val: 7 images, 10000 resamples" in printed and "B - A" in printed
    first = json.loads(out.read_text())["val"]
    assert main(["compare", one, two, "--seed", "5", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["val"] == first
    assert main(["compare", one, one, "--resamples", "9", "--json", str(out)]) == 0
    same = json.loads(out.read_text())["val"]
    assert [same["unseen"][key] for key in ("difference", "low", "high")] == [0, 0, 0]


def test_a_stream_is_printed_as_it_is_called(tmp_path, capsys):
    for name in ("[/b]", ":cat: [red]"):
        folder = write(tmp_path / name.strip("[/]"), measured(*label_maps(0.5)), stream=name)
        assert main(["compare", str(folder), str(folder), "--resamples", "9"]) == 0
        assert f"{name}: 7 images, 9 resamples" in capsys.readouterr().out


def test_what_differs_beside_the_training_is_said(tests, capsys):
    one, two = (str(folder) for folder in tests)
    assert main(["compare", one, two, "--resamples", "9"]) == 0
    assert "Mind" not in capsys.readouterr().out
    path = tests[1] / "results.json"
    results = json.loads(path.read_text())
    results["val"] |= {"inference": {"flips": True}, "unseen_masks": True}
    path.write_text(json.dumps(results))
    assert main(["compare", one, two, "--resamples", "9"]) == 0
    printed = capsys.readouterr().out
    assert "Mind that inference differs: A None, B {'flips': True}." in printed
    assert "Mind that unseen_masks differs: A None, B True." in printed


def refused(capsys, *arguments) -> str:
    assert main(["compare", *map(str, arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    return error


def test_what_cannot_be_compared_is_one_line(tests, tmp_path, capsys):
    one = tests[0]
    predictions, labels = label_maps(0.2)
    other = write(tmp_path / "p", measured(predictions, labels), {**FACTS, "name": "q"})
    assert "name is 'p' and 'q' in stream 'val'" in refused(capsys, one, other)
    fewer = write(tmp_path / "fewer", measured(predictions[:5], labels[:5]))
    assert "7 and 5, 5 of them in both" in refused(capsys, one, fewer)
    labels[2, 3, 3] = (labels[2, 3, 3] + 1) % 3
    truth = write(tmp_path / "truth", measured(predictions, labels))
    assert "the truth of number 2 is not the same" in refused(capsys, one, truth)
    stream = write(tmp_path / "stream", measured(predictions, labels), stream="drawn")
    assert "different streams, val and drawn" in refused(capsys, one, stream)
    empty = SegmentationIoU(5, SEEN, UNSEEN)
    empty.update(predictions[:0], labels[:0])
    none = write(tmp_path / "none", empty)
    assert "no image in stream 'val'" in refused(capsys, none, none)
    assert "--resamples must be >= 1" in refused(capsys, one, one, "--resamples", 0)


def test_files_that_are_no_test(tests, tmp_path, capsys):
    one, two = tests
    assert "no " in refused(capsys, one, tmp_path / "none" / "results.json")
    (two / "results.json").write_text((one / "results.json").read_text())
    assert "of two different tests" in refused(capsys, one, two)
    (two / "results.json").write_text(json.dumps({"all": {"miou": 3}}))
    assert "not those of a test of a segmenter" in refused(capsys, one, two)
    (two / "results_images.npz").write_bytes(b"PK damaged")
    assert "not those of a test of a segmenter" in refused(capsys, one, two)
    (two / "results_images.npz").unlink()
    assert "results_images.npz: `ovseg test`" in refused(capsys, one, two)


def test_images_come_in_their_order_and_once():
    predictions, labels = label_maps(0.3, images=4)
    metric = measured(predictions, labels, torch.tensor([4, 1, 9, 2]))
    metric.update(predictions[1:2], labels[1:2], torch.tensor([1]))  # a padding repeat
    indices, areas = metric.images()
    assert indices.tolist() == [1, 2, 4, 9]
    _, straight = measured(predictions, labels).images()
    assert np.array_equal(areas, straight[[1, 3, 0, 2]])
    empty = SegmentationIoU(5, SEEN, UNSEEN).images()
    assert [part.shape for part in empty] == [(0,), (0, 3, 5)]


def test_a_damaged_file_of_images_is_one_line(tests, capsys):
    """Bytes flipped anywhere: damage of a kind each, or none that anything is read from."""
    path = tests[0] / "results_images.npz"
    content, random = path.read_bytes(), np.random.default_rng(0)
    codes = []
    for place in random.permutation(len(content))[:300]:
        flipped = bytearray(content)
        flipped[place] ^= int(random.integers(1, 256))
        path.write_bytes(flipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile's, of two files of one name
            codes.append(main(["compare", *map(str, tests), "--resamples", "5"]))
        error = capsys.readouterr().err.strip()
        assert error.count("\n") == 0 and bool(error) == (codes[-1] == 2)
    assert set(codes) == {0, 2} and codes.count(2) > 150


def test_areas_of_another_shape_are_one_line(tests, capsys):
    path = tests[0] / "results_images.npz"
    indices, areas = measured(*label_maps(0.5)).images()
    for one, two, seen in (
        (indices, areas[:, :, :3], SEEN),
        (indices, areas[:, :1], SEEN),
        (indices, areas[0], SEEN),
        (indices[:5], areas, SEEN),
        (indices, areas, [1, -3]),
    ):
        path.write_bytes(pack_images({"val": (one, two)}, seen, UNSEEN))
        assert "not those of a test of a segmenter: ValueError: " in refused(capsys, *tests)


def test_a_split_without_unseen_classes_is_compared(tmp_path, capsys):
    for name, errors in (("a", 0.5), ("b", 0.2)):
        metric = SegmentationIoU(5, [1, 2, 3, 4], [])
        metric.update(*label_maps(errors), torch.arange(7))
        (tmp_path / name).mkdir()
        images = pack_images({"val": metric.images()}, [1, 2, 3, 4], [])
        (tmp_path / name / "results_images.npz").write_bytes(images)
        scores = {"seen": float(metric.compute()["seen"]), "unseen": None, "harmonic": None}
        results = {"val": {**scores, "protocol": FACTS}}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    out = tmp_path / "out.json"
    folders = (str(tmp_path / name) for name in "ab")
    assert main(["compare", *folders, "--resamples", "5", "--json", str(out)]) == 0
    found = json.loads(out.read_text())["val"]
    assert found["seen"]["difference"] > 0 and found["unseen"]["difference"] is None
