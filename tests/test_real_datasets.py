"""configs/datasets on trees of the true layouts, written here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ovseg.__main__ import main
from ovseg.data.real import MMSegDataset
from ovseg.metrics import SegmentationIoU, mmseg_iou_metric
from ovseg.report.pictures import voc_picture
from ovseg.vocabulary import Vocabulary

FOLDER = Path(__file__).parents[1] / "configs" / "datasets"
VOC, CONTEXT = "data/VOCdevkit/VOC2012", "data/VOCdevkit/VOC2010"
COCO, ADE = "data/coco_stuff164k", "data/ade/ADEChallengeData2016"
LAYOUTS = {
    "voc_val": (f"{VOC}/JPEGImages/a.jpg", f"{VOC}/SegmentationClass/a.png"),
    "voc_trainaug": (f"{VOC}/JPEGImages/a.jpg", f"{VOC}/SegmentationClassAug/a.png"),
    "pascal_context_val": (
        f"{CONTEXT}/JPEGImages/a.jpg",
        f"{CONTEXT}/SegmentationClassContext/a.png",
    ),
    "coco_stuff_val": (
        f"{COCO}/images/val2017/a.jpg",
        f"{COCO}/annotations/val2017/a_labelTrainIds.png",
    ),
    "ade20k_val": (f"{ADE}/images/validation/a.jpg", f"{ADE}/annotations/validation/a.png"),
    "folder": ("data/mine/images/a.jpg", "data/mine/labels/a.png"),
}
LISTS = {
    "voc_val": f"{VOC}/ImageSets/Segmentation/val.txt",
    "voc_trainaug": f"{VOC}/ImageSets/Segmentation/trainaug.txt",
    "pascal_context_val": f"{CONTEXT}/ImageSets/SegmentationContext/val.txt",
}


def write(name: str, labels: np.ndarray) -> None:
    """Write a tree of one photograph into the working directory."""
    image, mask = map(Path, LAYOUTS[name])
    for path in (image, mask, Path(LISTS.get(name, mask))):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", labels.shape[::-1], (200, 30, 40)).save(image)
    (voc_picture(labels) if "voc" in name else Image.fromarray(labels)).save(mask)
    if name in LISTS:
        Path(LISTS[name]).write_text("a\n")


def arguments_of(name: str) -> dict:
    """Return the arguments of the one stream of a file."""
    (streams,) = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["data"]["init_args"].items()
    kind, content = streams
    (config,) = [content] if kind == "train" else content.values()
    assert config["class_path"] == "ovseg.data.real.MMSegDataset"
    return config["init_args"]


def load(name: str, vocabulary: Vocabulary, **changes) -> MMSegDataset:
    stream = MMSegDataset(**{**arguments_of(name), **changes})
    stream.bind(vocabulary)
    return stream


def words_of(name: str, folder: Path) -> Vocabulary:
    """Write a vocabulary of all classes of a dataset, in another order than its own."""
    from mmseg.registry import DATASETS

    classes = DATASETS.get(arguments_of(name)["dataset"]["type"]).METAINFO["classes"]
    entries = [{"key": key, "color": [1, 2, 3]} for key in reversed(classes)]
    path = folder / "words.yaml"
    path.write_text(yaml.safe_dump({"name": name, "classes": entries, "splits": {"1": []}}))
    return Vocabulary.load(str(path))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def every_id(count: int) -> np.ndarray:
    """Return a label map of all ids and 255, ``(2, N)``."""
    return np.array([[*range(count), 255]] * 2, np.uint8)


def test_voc_is_its_vocabulary_background_included():
    write("voc_val", every_id(21))
    labels = load("voc_val", Vocabulary.load("voc"))[[0]].labels[0, 0]
    assert labels.tolist() == [*range(21), 255]


def test_voc_trainaug_hides_unseen_classes_and_crops():
    ids = np.kron(every_id(21), np.ones((300, 30), np.uint8))
    write("voc_trainaug", ids)
    words = Vocabulary.load("voc", "zs3")
    stream, own = load("voc_trainaug", words), torch.tensor([200.0, 30, 40])
    assert stream.taught_classes() == set(words.seen)
    batches = [stream[[n]] for n in range(12)]  # one image in 12 epochs
    assert {batch.labels.shape for batch in batches} == {(1, 512, 512)}
    padded = 0
    for batch in batches:
        padding = (batch.images == torch.tensor([124, 116, 104])[:, None, None]).all(1)
        assert (batch.labels[padding] == 255).all()
        assert (batch.images[0, :, ~padding[0]].float().mean(1) - own).abs().max() < 5
        padded += bool(padding.any())
    assert 0 < padded < 12
    whole = load("voc_trainaug", words, transforms=[])[[0]].labels[0, 0, ::30]
    assert whole.tolist() == [*range(16), *[255] * 6]


def test_coco_stuff_is_its_vocabulary():
    write("coco_stuff_val", every_id(171))
    labels = load("coco_stuff_val", Vocabulary.load("coco_stuff", "zs3"))[[0]].labels[0, 0]
    assert labels.tolist() == [*range(1, 172), 255]
    objects = load("coco_stuff_val", Vocabulary.load("coco", "65_15"))[[0]].labels[0, 0]
    assert objects.tolist() == [*range(1, 81), *[255] * 92]


@pytest.mark.parametrize(("name", "count"), [("pascal_context_val", 59), ("ade20k_val", 150)])
def test_zero_is_ignored_and_classes_are_matched_by_name(name, count, tmp_path):
    write(name, every_id(count + 1))
    labels = load(name, words_of(name, tmp_path))[[0]].labels[0, 0]
    assert labels.tolist() == [255, *range(count, 0, -1), 255]
    write(name, np.full((2, 2), count + 1, np.uint8))
    with pytest.raises(ValueError, match=rf"no class: {count + 1}; .* are 1..{count}, 255"):
        load(name, words_of(name, tmp_path))[[0]]


def test_scores_are_mmsegmentations_where_zero_is_reduced(tmp_path):
    """Its own loader and metric on the dataset's ids; ours on the vocabulary's, reversed."""
    random = np.random.default_rng(0)
    ids = random.integers(0, 120, (40, 50)).astype(np.uint8)  # 30 classes do not occur
    ids[random.random(ids.shape) < 0.1] = 255
    write("ade20k_val", ids)
    words = words_of("ade20k_val", tmp_path)
    stream = load("ade20k_val", words)
    truth = stream.dataset.prepare_data(0)["data_samples"].gt_sem_seg.data[0].long()
    assert truth.min() == 0 and set(truth[ids == 0].tolist()) == {255}
    noise = torch.from_numpy(random.integers(0, 100, truth.shape))
    wrong = torch.from_numpy(random.random(truth.shape) < 0.4)
    said = torch.where(wrong | (truth == 255), noise, truth)
    score = mmseg_iou_metric()
    with np.errstate(all="ignore"):
        areas = score.intersect_and_union(said, truth, 150, 255)
        wanted = 100 * score.total_area_to_metrics(*areas)["IoU"]
    metric = SegmentationIoU(151, words.seen, words.unseen)
    metric.update(150 - said[None], stream[[0]].labels)
    found = metric.compute()
    assert 20 < np.isnan(wanted).sum() < 40
    np.testing.assert_allclose(found["per_class"][1:].flip(0).numpy(), wanted, rtol=1e-6)
    assert found["mean"].item() == pytest.approx(np.nanmean(wanted), rel=1e-6)


def test_what_voc_and_context_share():
    write("pascal_context_val", every_id(60))
    words = Vocabulary.load("voc")
    stream = load("pascal_context_val", words)
    lost = {c.key for c in words.classes} - {words[i].key for i in stream.taught_classes()}
    assert lost <= {"diningtable"}  # "table" is more than dining tables
    assert (stream[[0]].labels == 255).any()


def test_a_folder_of_ones_own():
    write("folder", every_id(3))
    words = Vocabulary.load("voc")
    cat, dog = words.id_of("cat"), words.id_of("dog")
    assert load("folder", words)[[0]].labels[0, 0].tolist() == [0, cat, dog, 255]
    Path("data/mine/labels/b.png").write_bytes(Path("data/mine/labels/a.png").read_bytes())
    with pytest.raises(FileNotFoundError, match="1 of .* label maps have no image, .*b.png"):
        load("folder", words)


def stage() -> str:
    """Write a stage with a plug-in's segmenter, without a test stream."""
    optimizer = {"class_path": "torch.optim.Adam"}
    model = {"segmenter": {"class_path": "acme.segmenter.PixelSegmenter"}, "optimizer": optimizer}
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    config = {
        "trainer": quiet,
        "model": {
            "class_path": "ovseg.modules.segmentation.SegmentationModule",
            "init_args": model,
        },
        "data": {
            "class_path": "ovseg.data.datamodule.SyntheticDataModule",
            "init_args": {"vocabulary": "voc", "batch_size": 1},
        },
    }
    Path("stage.yaml").write_text(yaml.safe_dump(config))
    return "stage.yaml"


def test_files_are_layers_over_a_stage(capfd):
    for name in ("voc_val", "voc_trainaug"):
        write(name, np.kron(every_id(21), np.ones((30, 9), np.uint8)))
    layers = ["-c", stage(), "-c", str(FOLDER / "voc_val.yaml")]
    assert main(["test", *layers]) == 0
    assert list(json.loads(Path("results.json").read_text())) == ["voc_val"]
    Path("data").rename("elsewhere")
    assert main(["test", *layers]) == 2
    assert "no PascalVOCDataset in" in capfd.readouterr().err
    root = "--data.init_args.test.voc_val.init_args.data_root=elsewhere/VOCdevkit/VOC2012"
    assert main(["test", *layers, root]) == 0
    Path("elsewhere").rename("data")
    layers += ["-c", str(FOLDER / "voc_trainaug.yaml"), "--trainer.max_steps=1"]
    assert main(["fit", *layers, "--trainer.enable_checkpointing=false"]) == 0


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda image, mask: image.unlink(), "a.jpg, which belongs to"),
        (lambda image, mask: mask.unlink(), "a.png, which belongs to"),
        (lambda image, mask: Image.new("RGB", (5, 4)).save(image), "must have the same size"),
        (lambda image, mask: Image.new("L", (22, 2), 99).save(mask), "ids of no class: 99;"),
        (lambda image, mask: Image.new("RGB", (22, 2)).save(mask), "of mode RGB, no label map"),
        (lambda image, mask: image.write_bytes(b""), "a.jpg cannot be read: it is empty or"),
        (lambda image, mask: mask.write_bytes(b""), "a.png cannot be read: it is empty or"),
        (lambda image, mask: Path(LISTS["voc_val"]).write_text("\n"), "val.txt is empty"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(spoil, words, capfd):
    write("voc_val", every_id(21))
    spoil(*map(Path, LAYOUTS["voc_val"]))
    assert main(["test", "-c", stage(), "-c", str(FOLDER / "voc_val.yaml")]) == 2
    error = capfd.readouterr().err.strip()
    assert error.count("\n") == 0 and words in error, error
    assert not Path("results.json").exists()


def test_every_layout_is_tested():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(LAYOUTS)
