"""The command line: what it lists, what it refuses and how."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import ovseg
from ovseg.__main__ import VERBS, main

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(
    {
        path.resolve()  # where the package's are links to the project's, they are one
        for folder in (ROOT / "configs", Path(ovseg.__file__).parent / "clipart" / "configs")
        for path in folder.rglob("*.yaml")
    }
)


def test_help_lists_every_verb_before_torch_is_imported():
    code = (
        "import sys; from ovseg.__main__ import main; main(['--help'])\n"
        "assert not {'torch', 'lightning', 'jsonargparse', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for verb, (_, text) in VERBS.items():
        assert verb in done.stdout and text in done.stdout


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == ovseg.__version__


def test_an_unknown_verb_gets_the_nearest(capsys):
    assert main(["predcit", "--config", "x"]) == 2
    error = capsys.readouterr().err
    assert "'predcit'" in error and "'predict'" in error and error.count("\n") == 1


def test_fit_help_is_usable(capsys):
    with pytest.raises(SystemExit) as left:
        main(["fit", "--help"])
    printed = capsys.readouterr()
    assert left.value.code == 0 and not printed.err
    for word in ("--config", "--model", "--data", "--trainer.max_steps", "--ckpt_path"):
        assert word in printed.out


def config(**changes) -> dict:
    """Return a configuration of the third party's parts."""
    return {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
        },
        "model": {
            "class_path": "ovseg.modules.segmentation.SegmentationModule",
            "init_args": {
                "segmenter": {"class_path": "acme.segmenter.PixelSegmenter"},
                "optimizer": {"class_path": "torch.optim.Adam"},
            },
        },
        "data": {
            "class_path": "ovseg.data.datamodule.SyntheticDataModule",
            "init_args": {
                "vocabulary": "clipart",
                "batch_size": 4,
                "train": {
                    "class_path": "ovseg.clipart.stream.DrawnScenes",
                    "init_args": {"size": 8, "seed": 0, "classes": "seen"},
                },
            },
        },
        **changes,
    }


@pytest.fixture
def stage(tmp_path, monkeypatch) -> str:
    """Path of a configuration file; the working directory is a fresh one."""
    monkeypatch.chdir(tmp_path)
    Path("stage.yaml").write_text(yaml.safe_dump(config()))
    Path("broken.yaml").write_text("trainer: {max_steps: 3\n")
    Path("damaged.ckpt").write_bytes(b"PK not a checkpoint")
    return "stage.yaml"


REQUIRED = "the following arguments are required: "
LACKING = {
    "status": REQUIRED + "dataset",
    "segment": REQUIRED + "photos, --names, --out",
    "prompts": REQUIRED + "--config/-c",
    "names": REQUIRED + "--vocabulary, --backbone",
    "export": REQUIRED + "dataset, --format, --out",
    "compare": REQUIRED + "RESULTS_A, RESULTS_B",
    "quickstart": REQUIRED + "--out",
    "report": REQUIRED + "folder",
    "check": REQUIRED + "backbone",
    "refilter": REQUIRED + "dataset, out",
}


@pytest.mark.parametrize("verb", LACKING)
def test_wrong_arguments_of_every_verb_are_one_line(verb, capsys):
    assert main([verb]) == 2
    assert capsys.readouterr() == ("", f"ovseg {verb}: {LACKING[verb]}\n")
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0 and f"ovseg {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["export", "set", "--format", "xyz", "--out", "out"],
            "ovseg export: argument --format: invalid choice: 'xyz' (choose from ",
        ),
        (
            ["report", "set", "--samples", "a\nb"],
            "ovseg report: argument --samples: invalid int value: ",
        ),
        (["status", "set", "--all"], "ovseg status: unrecognized arguments: --all"),
    ],
)
def test_a_wrong_choice_value_or_option_is_one_line(arguments, line, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(line) and printed.err.count("\n") == 1 and not printed.out


DATA, MODEL = "--data.init_args.", "--model.init_args."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([DATA + "batch_size=0"], ["batch_size must be >= 1, got 0"]),
        ([DATA + "batch_size=many"], ["data.batch_size", "int", "many"]),
        ([DATA + "split=9"], ["no split '9'", "1, 2, 3"]),
        ([DATA + "vocabulary=vok"], ["'vok'", "clipart, coco, coco_stuff, pascal_context, voc"]),
        ([DATA + "batches=3"], ["'batches' is not accepted"]),
        ([DATA + "train=ovseg.data.live.NoStream"], ["NoStream"]),
        ([DATA + "train=ovseg.vocabulary.Vocabulary"], ["Vocabulary", "not", "Stream"]),
        ([MODEL + "segmenter.init_args.hidden=0"], ["hidden must be >= 1, got 0"]),
        ([MODEL + "segmenter=nopackage.Net"], ["No module named 'nopackage'"]),
        ([MODEL + "background_in_mean=true", MODEL + "score_background=false"], ["background"]),
        ([MODEL + "protocol=clipart_4"], ["no protocol 'clipart_4'", "clipart_1"]),
        ([MODEL + "protocol=voc_zs3"], ["one of vocabulary 'voc'", "has 'clipart', split '1'"]),
        (["--trainer.accelerator=abacus"], ["abacus"]),
        ([DATA + "train.init_args.classes=all"], ["boat", "calls unseen", "unseen_masks: true"]),
        (["--trainer.max_stepz=3"], ["max_stepz"]),
        (["--ckpt_path=none.ckpt"], ["none.ckpt"]),
        (["--ckpt_path=damaged.ckpt"], ["weights", "damaged"]),
        (["-c", "missing.yaml"], ["missing.yaml"]),
        (["-c", "broken.yaml"], ["parsing", "line"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, stage, capfd):
    assert main(["fit", "-c", stage, *arguments]) == 2
    error = capfd.readouterr().err.strip()
    assert error.count("\n") == 0, error
    assert error.startswith("ovseg fit: ")
    for word in words:
        assert word in error, error


def test_a_stage_without_its_stream(stage, capfd):
    assert main(["test", "-c", stage]) == 2
    assert capfd.readouterr().err.strip() == "ovseg test: `test` needs a stream: set data.test"


def test_a_checkpoint_of_another_architecture(stage, capfd):
    save = ["--trainer.enable_checkpointing=true", "--trainer.default_root_dir=run"]
    assert main(["fit", "-c", stage, *save]) == 0
    (checkpoint,) = Path("run").rglob("*.ckpt")
    again = [MODEL + "segmenter.init_args.hidden=5", f"--ckpt_path={checkpoint}"]
    capfd.readouterr()
    assert main(["fit", "-c", stage, *again]) == 2
    error = capfd.readouterr().err.strip()
    assert error.count("\n") == 0 and "another architecture" in error and "segmenter" in error


def test_a_checkpoint_of_other_classes(stage, capfd):
    save = ["--trainer.enable_checkpointing=true", "--trainer.default_root_dir=run"]
    assert main(["fit", "-c", stage, *save]) == 0
    (checkpoint,) = Path("run").rglob("*.ckpt")
    content = (Path(ovseg.__file__).parent / "vocabularies" / "clipart.yaml").read_text()
    own = yaml.safe_load(content)
    own["classes"][1], own["classes"][4] = own["classes"][4], own["classes"][1]
    Path("own.yaml").write_text(yaml.safe_dump(own))
    capfd.readouterr()
    again = ["fit", "-c", stage, DATA + "vocabulary=own.yaml", f"--ckpt_path={checkpoint}"]
    assert main(again) == 2
    error = capfd.readouterr().err.strip()
    assert error.count("\n") == 0 and "trained on 20 classes" in error, error
    first, other = (own["classes"][n]["key"] for n in (4, 1))
    assert f"the first that differs is number 2, {first} there and {other} here" in error


def test_fit_goes_on_with_test_if_asked(stage, capfd):
    train = config()["data"]["init_args"]["train"]
    scenes = {**train, "init_args": {"size": 6, "seed": 5, "objects": [2]}}
    streams = ["--data.init_args.test", yaml.safe_dump({"drawn": scenes})]
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    callback["init_args"] = {"dirpath": "run/checkpoints", "save_last": True}
    save = ["--trainer.enable_checkpointing=true", "--trainer.max_steps=2"]
    save += ["--trainer.callbacks", yaml.safe_dump([callback])]
    one, two = ("--trainer.default_root_dir=one", "--trainer.default_root_dir=two")
    assert main(["fit", "-c", stage, *streams, *save, one, "--then_test", "true"]) == 0
    weights = "--ckpt_path=run/checkpoints/last.ckpt"
    more = "--trainer.callbacks+=ovseg.callbacks.mistakes.TestMistakes"
    assert main(["test", "-c", stage, *streams, *save, more, two, weights]) == 0
    assert Path("two/confusion_drawn.png").is_file() and Path("two/worst_drawn.html").is_file()
    assert capfd.readouterr().out.count("boat (unseen)") == 2  # a table of each test
    results = [Path(run, "results.json").read_text() for run in ("one", "two")]
    assert results[0] == results[1] and "harmonic" in json.loads(results[0])["drawn"]
    Path("one/results.json").unlink()  # as if it was killed then
    assert main(["fit", "-c", stage, *streams, *save, one, "--then_test", "true", weights]) == 0
    assert Path("one/results.json").read_text() == results[1]


def test_an_unwritable_output(stage, capfd):
    Path("file").touch()
    test = yaml.safe_dump({"x": config()["data"]["init_args"]["train"]})
    streams = ["--data.init_args.test", test]
    assert main(["test", "-c", stage, *streams, "--trainer.default_root_dir=file/run"]) == 2
    error = capfd.readouterr().err.strip()
    assert error.count("\n") == 0 and "cannot write to file/run" in error


MINE = """
from acme.segmenter import PixelSegmenter

class Mine(PixelSegmenter):
    def __init__(self, num_classes: int, depth: int):
        raise ValueError(f"depth {depth} is too deep")
"""


def test_a_console_script_finds_plug_ins_of_the_working_directory(stage, tmp_path):
    Path("mine.py").write_text(MINE)
    net = [MODEL + "segmenter=mine.Mine", MODEL + "segmenter.init_args.depth=7"]
    script = "import sys; sys.path.remove(''); from ovseg.__main__ import main; sys.exit(main())"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "plugins")])
    done = subprocess.run(
        [sys.executable, "-c", script, "fit", "-c", stage, *net],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (2, "ovseg fit: depth 7 is too deep\n")


def test_the_traceback_on_demand(stage, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(ValueError, match="batch_size"):
        main(["fit", "-c", stage, DATA + "batch_size=0"])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_parses(path, stage, capfd):
    """A whole stage by itself; a layer or a part together with a stage."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "backbones":
        layers = ["-c", stage, DATA + f"backbone={path}"]
    elif "class_path" in content:
        layers = ["-c", stage, MODEL + f"segmenter={path}"]
    elif "class_path" in content.get("model", {}):  # a whole stage, no layer
        layers = ["-c", str(path)]
    elif path.parent.name == "regimes" and path.stem[0].isalpha():  # of stage 4
        layers = ["-c", str(path.parents[1] / "4_segmenter.yaml"), "-c", str(path)]
    elif path.parent.name == "annotated":  # changes of stage 1
        layers = ["-c", str(path.with_name("voc_sd15.yaml")), "-c", str(path)]
    elif "grounder" in content.get("model", {}).get("init_args", {}):  # another grounder
        base = "*_grounding.yaml" if path.stem[0] == "2" else "voc*_fusion.yaml"
        (base,) = path.parent.glob(base)
        layers = ["-c", str(base), "-c", str(path)]
    else:
        layers = ["-c", stage, "-c", str(path)]
    with pytest.raises(SystemExit) as left:
        main(["fit", *layers, "--print_config"])
    assert left.value.code == 0
    printed = yaml.safe_load(capfd.readouterr().out)
    assert printed["model"]["class_path"].startswith("ovseg.modules.")
