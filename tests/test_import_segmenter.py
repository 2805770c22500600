"""tools/import_segmenter.py: an MMSegmentation config and checkpoint become a segmenter folder."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_mmseg import MEAN, PREPROCESSOR, SIZE, STD, config, fcn, of_mmseg, train

from ovseg.annotators.mmseg import MMSegAnnotator
from ovseg.segmenters.folder import load_segmenter
from ovseg.structures import DiffusionSample, Entities, to_label_map
from ovseg.vocabulary import Vocabulary

TOOL = Path(__file__).parents[1] / "tools" / "import_segmenter.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("runner"))


@pytest.fixture(scope="module")
def content(trained) -> dict:
    return torch.load(trained, weights_only=False)


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(TOOL))["main"]


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randint(256, (3, *SIZE), generator=torch.Generator().manual_seed(9)).byte()


def of_annotator(folder: Path, image: torch.Tensor) -> torch.Tensor:
    words = Vocabulary.load("voc")
    annotator = MMSegAnnotator(str(folder), classes="all", min_area=0, min_score=0)
    annotator.bind(words)
    ids = torch.tensor([words.select("all")])
    entities = Entities(torch.zeros(*ids.shape, 4), ids, ids > 0)
    annotation = annotator.annotate(
        DiffusionSample([], image[None], torch.zeros(0), torch.zeros(0), entities)
    )
    return to_label_map(annotation.masks, ids, annotation.found)[0]


def test_a_runners_checkpoint_gives_the_label_map_of_mmsegmentation(
    main, trained, content, image, tmp_path, capsys
):
    with pytest.raises(Exception, match="HistoryBuffer"):
        torch.load(trained, weights_only=True)
    out = tmp_path / "out"
    given = [config(tmp_path / "c.py", fcn()), str(trained), str(out), "--vocabulary", "voc"]
    assert main([*given, "--trained_on", "seen"]) == 0
    printed = capsys.readouterr().out
    for line in (
        f"{trained}: {len(content['state_dict'])} tensors loaded",
        "classes: 21 with background, named in the vocabulary's order",
        f"images: RGB, mean {MEAN}, std {STD}, the config's",
        f"checkpoint_folder: {out}",
    ):
        assert line in printed
    expected = of_mmseg(content["state_dict"], image)
    assert len(expected.unique()) > 4
    assert torch.equal(of_annotator(out, image), expected)
    unseen = {"tvmonitor", "car", "dog", "sofa", "train"}  # of split 1
    loaded = load_segmenter(out)
    assert set(loaded.keys) - set(loaded.trained_on) == unseen
    assert main([*given, "--trained_on", "dog, cat"]) == 0  # takes the older one's place
    assert load_segmenter(out).trained_on == ["cat", "dog"]


def test_a_plain_state_dict_is_taken_on_trust(main, content, image, tmp_path, capsys):
    torch.save(content["state_dict"], tmp_path / "plain.pth")
    save_file(content["state_dict"], tmp_path / "plain.safetensors")
    raw = {"type": "mmseg.SegDataPreProcessor", "bgr_to_rgb": True}
    for file, name, preprocessor, words in (
        ("plain.pth", "c.yaml", PREPROCESSOR, "the config's"),
        ("plain.safetensors", "c.py", raw, "mean [0.0, 0.0, 0.0], std [1.0, 1.0, 1.0]"),
        ("plain.pth", "c.py", None, "ImageNet's, for the config has no data_preprocessor"),
    ):
        path, out = config(tmp_path / name, fcn(preprocessor=preprocessor)), tmp_path / "out"
        assert main([path, str(tmp_path / file), str(out), "--vocabulary", "voc"]) == 0
        printed = capsys.readouterr().out
        assert "taken on trust" in printed and words in printed
        imagenet = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
        theirs = preprocessor or PREPROCESSOR | imagenet
        expected = of_mmseg(content["state_dict"], image, theirs)
        assert torch.equal(of_annotator(out, image), expected)
        loaded = load_segmenter(out)
        assert loaded.trained_on == loaded.keys


def test_another_order_is_brought_into_the_vocabularys(main, content, image, tmp_path, capsys):
    shuffled = torch.randperm(21, generator=torch.Generator().manual_seed(2)).tolist()
    state = dict(content["state_dict"])
    for name in ("decode_head", "auxiliary_head"):
        for part in ("weight", "bias"):
            state[f"{name}.conv_seg.{part}"] = state[f"{name}.conv_seg.{part}"][shuffled]
    names = [content["meta"]["dataset_meta"]["classes"][i] for i in shuffled]
    names[shuffled.index(20)] = "television"  # a synonym
    file, out = tmp_path / "old.pth", tmp_path / "out"
    torch.save({"meta": {"CLASSES": names}, "state_dict": state}, file)  # as MMSegmentation 0 does
    given = [config(tmp_path / "c.py", fcn()), str(file), str(out), "--vocabulary", "voc"]
    assert main(given) == 0
    assert "moved to the vocabulary's order" in capsys.readouterr().out
    assert torch.equal(of_annotator(out, image), of_mmseg(content["state_dict"], image))
    again = load_segmenter(out).segmenter.model.state_dict()
    assert all(torch.equal(again[key], content["state_dict"][key]) for key in again)


class Malicious:
    """What creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_what_would_run_code_is_refused(main, content, tmp_path, capsys):
    file, run = tmp_path / "evil.pth", tmp_path / "run"
    torch.save({**content, "more": Malicious(run)}, file)
    given = [config(tmp_path / "c.py", fcn()), str(file), str(tmp_path / "out")]
    assert main([*given, "--vocabulary", "voc"]) == 2
    error = capsys.readouterr().err
    assert "hold pickled objects (pathlib." in error and error.count("\n") == 1, error
    assert not run.exists() and not (tmp_path / "out").exists()
    torch.load(file, weights_only=False)
    assert run.exists()  # so it would have


COCO = ("--vocabulary", "coco", "--split", "65_15")


def changed(content: dict, names: list[str] | None = None, **tensors) -> dict:
    meta = {} if names is None else {"dataset_meta": {"classes": names}}
    return {"meta": meta, "state_dict": {**content["state_dict"], **tensors}}


def test_what_does_not_fit_is_refused_in_one_line(main, content, tmp_path, capsys):
    names = list(content["meta"]["dataset_meta"]["classes"])
    swapped = [names[1], names[0], *names[2:]]
    files = {
        "good": content,
        "fewer": changed(content, names[:20]),
        "rows": changed(content, **{"decode_head.conv_seg.weight": torch.zeros(20, 6, 1, 1)}),
        "foreign": changed(content, [*names[:20], "zebra"]),
        "twice": changed(content, [*names[:20], "airplane"]),
        "bare": changed(content, ["tv", *names[1:]]),
        "swapped": changed(content, swapped),
        "net": changed(content, names, **{"backbone.more": torch.zeros(1)}),
        "numbers": {"state_dict": {"a": 1}},
    }
    for name, value in files.items():
        torch.save(value, tmp_path / f"{name}.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    (tmp_path / "broken.py").write_text("model = (\n")
    (tmp_path / "none.py").write_text("x = 1\n")
    config(tmp_path / "ok.py", fcn())
    config(tmp_path / "bgr.py", fcn(preprocessor=PREPROCESSOR | {"bgr_to_rgb": False}))
    odd = fcn()
    odd["auxiliary_head"] |= {"channels": 21}
    config(tmp_path / "odd.py", odd)
    states = {k: v for k, v in content["state_dict"].items() if "auxiliary_head" not in k}
    odd_head = {
        "convs.0.conv.weight": (21, 8, 3, 3),
        **{f"convs.0.bn.{n}": (21,) for n in ("weight", "bias", "running_mean", "running_var")},
        "conv_seg.weight": (21, 21, 1, 1),
        "conv_seg.bias": (21,),
    }
    states |= {f"auxiliary_head.{k}": torch.zeros(*shape) for k, shape in odd_head.items()}
    odd_file = {"meta": {"CLASSES": swapped}, "state_dict": states}
    torch.save(odd_file, tmp_path / "odd.pth")
    for settings, file, more, line in (
        ("absent.py", "good", (), "no mmseg config file"),
        ("ok.py", "absent", (), "no weights file"),
        ("ok.py", "good", ("--vocabulary", "v.yaml"), "no vocabulary 'v.yaml'"),
        ("ok.py", "good", ("--split", "9"), "has no split '9'"),
        ("ok.py", "good", ("--trained_on", "dog,zebra"), "unknown class 'zebra'"),
        ("ok.py", "good", COCO, "has 21 classes, vocabulary 'coco' has 81"),
        ("ok.py", "good", ("--vocabulary", "clipart"), "unknown class 'aeroplane'"),
        ("ok.py", "fewer", (), "has 20 classes, vocabulary 'voc' has 21 with background"),
        ("ok.py", "rows", (), "has 20 classes, vocabulary 'voc' has 21 with background"),
        ("ok.py", "foreign", (), "unknown class 'zebra'"),
        ("ok.py", "twice", (), "no class 'tv'"),
        ("ok.py", "bare", (), "no class 'background'"),
        ("odd.py", "odd", (), "class 0 is 'aeroplane' in the checkpoint, 'background' in voc"),
        ("ok.py", "net", (), "another architecture: 0 tensors missing, 1 unknown"),
        ("ok.py", "numbers", (), "are no state dict: wanted tensors by name"),
        ("ok.py", "text", (), "are damaged or hold pickled objects"),
        ("broken.py", "good", (), "broken.py cannot be read: SyntaxError"),
        ("none.py", "good", (), "has no `model`"),
        ("bgr.py", "good", (), "must have bgr_to_rgb: true"),
    ):
        out = tmp_path / "out"
        given = [str(tmp_path / settings), str(tmp_path / f"{file}.pth"), str(out)]
        assert main([*given, "--vocabulary", "voc", *more]) == 2, line
        error = capsys.readouterr().err
        assert line in error and error.count("\n") == 1, error
        assert not out.exists()
    given = [str(tmp_path / "ok.py"), str(tmp_path / "good.pth"), str(tmp_path / "thesis")]
    assert main([*given, "--vocabulary", "voc"]) == 2
    assert "exists and holds no segmenter" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
