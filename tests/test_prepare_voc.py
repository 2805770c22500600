"""tools/prepare_voc.py on trees of the true layout, written here."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg.data.real import MMSegDataset
from ovseg.report.pictures import voc_picture
from ovseg.vocabulary import Vocabulary

NAMES = {"train": ["2007_1", "2007_2"], "val": ["2007_3"]}
ADDED = {"train": ["2008_5", "2007_2", "2008_4"], "val": ["2007_3", "2009_6"]}
SIZE = (9, 7)  # width, height


def labels_of(name: str) -> np.ndarray:
    random = np.random.default_rng(int(name.replace("_", "")))
    return random.choice([0, 3, 20, 255], size=SIZE[::-1]).astype(np.uint8)


def save_mat(path: Path, labels: np.ndarray) -> None:
    from scipy.io import savemat

    truth = {"Segmentation": labels, "CategoriesPresent": np.unique(labels), "Boundaries": []}
    savemat(path, {"GTcls": truth}, do_compression=True)


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "tools"))
    return importlib.import_module("prepare_voc")


@pytest.fixture
def trees(tmp_path):
    """Folders VOC2012 and benchmark_RELEASE/dataset; SBD's masks of VOC's images are other ones."""
    voc, sbd = tmp_path / "VOC2012", tmp_path / "benchmark_RELEASE" / "dataset"
    for folder in (*(voc / n for n in ("JPEGImages", "SegmentationClass")), sbd / "cls"):
        folder.mkdir(parents=True)
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    for part in ("train", "val"):
        (voc / f"ImageSets/Segmentation/{part}.txt").write_text("\n".join(NAMES[part]) + "\n")
        (sbd / f"{part}.txt").write_text("\n".join(ADDED[part]) + "\n")
        for name in {*NAMES[part], *ADDED[part]}:
            Image.new("RGB", SIZE).save(voc / f"JPEGImages/{name}.jpg")
        for name in NAMES[part]:
            voc_picture(labels_of(name)).save(voc / f"SegmentationClass/{name}.png")
        for name in ADDED[part]:
            save_mat(sbd / f"cls/{name}.mat", np.maximum(labels_of(name), 1) % 255)
    return voc, sbd


def run(tool, monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["prepare_voc.py", *map(str, arguments)])
    code = tool.main()
    return (code, *capsys.readouterr())


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_whole_tree_is_converted_once(tool, trees, monkeypatch, capsys):
    voc, sbd = trees
    before = files(voc)
    code, out, _ = run(tool, monkeypatch, capsys, voc)
    assert (code, files(voc)) == (0, before) and "2 train and 1 val images with masks" in out
    code, out, err = run(tool, monkeypatch, capsys, voc, "--sbd", sbd)
    assert code == 0 and "5 names in trainaug.txt, masks made: 5" in out and "5/5" in err
    names = (voc / "ImageSets/Segmentation/trainaug.txt").read_text().split()
    assert names == ["2007_1", "2007_2", "2008_4", "2008_5", "2009_6"]  # none of val
    new = {f"SegmentationClassAug/{name}.png" for name in names}
    assert files(voc) - before == {*new, "ImageSets/Segmentation/trainaug.txt"}
    for name in names:
        wanted = labels_of(name)
        if name not in NAMES["train"]:
            wanted = np.maximum(wanted, 1) % 255
        with Image.open(voc / f"SegmentationClassAug/{name}.png") as picture:
            assert picture.mode == "P" and picture.getpalette()[9:12] == [128, 128, 0]
            assert np.array_equal(np.asarray(picture), wanted)
    kept = voc / "SegmentationClassAug/2008_4.png"
    (voc / "SegmentationClassAug/2009_6.png").unlink()
    time = kept.stat().st_mtime_ns
    code, out, _ = run(tool, monkeypatch, capsys, voc, "--sbd", sbd)
    assert code == 0 and "masks made: 1" in out and kept.stat().st_mtime_ns == time
    stream = MMSegDataset(
        {
            "type": "PascalVOCDataset",
            "data_root": str(voc),
            "ann_file": "ImageSets/Segmentation/trainaug.txt",
            "data_prefix": {"img_path": "JPEGImages", "seg_map_path": "SegmentationClassAug"},
        }
    )
    stream.bind(Vocabulary.load("voc"))
    assert np.array_equal(stream[[0]].labels[0].numpy(), labels_of("2007_1"))


def test_every_folder_that_lacks_something_is_named(tool, trees, monkeypatch, capsys):
    voc, sbd = trees
    (voc / "JPEGImages/2007_3.jpg").unlink()
    for path in (sbd / "cls").glob("2008*"):
        path.unlink()
    before = files(voc)
    code, out, err = run(tool, monkeypatch, capsys, voc, "--sbd", sbd)
    assert (code, out, files(voc)) == (2, "", before)
    assert err.splitlines() == [
        f"prepare_voc: {voc}/JPEGImages lacks 1 of 3 files: 2007_3.jpg",
        f"prepare_voc: {sbd}/cls lacks 2 of 3 files: 2008_4.mat, 2008_5.mat",
    ]
    for path in (voc / "SegmentationClass").iterdir():
        path.unlink()
    (voc / "SegmentationClass").rmdir()
    _, _, err = run(tool, monkeypatch, capsys, voc)
    assert f"{voc}/SegmentationClass is missing: 3 files NAME.png belong there" in err
    code, _, err = run(tool, monkeypatch, capsys, voc.parent)
    assert code == 2 and "train.txt: unpack the archive again" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b"no matrix"), "is no label map of SBD"),
        (lambda path: save_mat(path, np.full(SIZE[::-1], 30, np.uint8)), "no class of VOC: 30"),
        (lambda path: save_mat(path, np.zeros((2, 3), np.uint8)), "has 3 x 2 pixels"),
    ],
)
def test_a_damaged_file_is_named_and_what_was_made_is_kept(
    spoil, words, tool, trees, monkeypatch, capsys
):
    voc, sbd = trees
    spoil(sbd / "cls/2008_5.mat")
    code, _, err = run(tool, monkeypatch, capsys, voc, "--sbd", sbd)
    assert code == 2 and "2008_5.mat" in err and words in err
    made = {path.name for path in (voc / "SegmentationClassAug").iterdir()}
    assert made == {"2007_1.png", "2007_2.png", "2008_4.png"}
    assert not (voc / "ImageSets/Segmentation/trainaug.txt").exists()
    save_mat(sbd / "cls/2008_5.mat", np.zeros(SIZE[::-1], np.uint8))
    assert "masks made: 2" in run(tool, monkeypatch, capsys, voc, "--sbd", sbd)[1]


@pytest.mark.parametrize(
    ("name", "size"),
    [("SegmentationClass/2007_1.png", 850), ("JPEGImages/2008_5.jpg", 10)],
)
def test_a_file_of_voc_cut_short_is_named(name, size, tool, trees, monkeypatch, capsys):
    voc, sbd = trees
    content = (voc / name).read_bytes()
    assert len(content) > size
    (voc / name).write_bytes(content[:size])
    assert run(tool, monkeypatch, capsys, voc)[0] == 0  # which only checks what is missing
    code, _, err = run(tool, monkeypatch, capsys, voc, "--sbd", sbd)
    said = f"prepare_voc: {voc / name} cannot be read: it is empty or damaged; fetch it again"
    assert code == 2 and err.strip().splitlines()[-1] == said


def test_help_says_what_is_checked(tool, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(tool, monkeypatch, capsys, "--help")
    assert "only checks that the files are there" in " ".join(capsys.readouterr().out.split())


def test_a_mask_painted_in_colours_is_refused(tool, trees, monkeypatch, capsys):
    voc, sbd = trees
    Image.new("RGB", SIZE).save(voc / "SegmentationClass/2007_1.png")
    code, _, err = run(tool, monkeypatch, capsys, voc, "--sbd", sbd)
    assert code == 2 and "2007_1.png is a picture of mode RGB, no label map" in err
