"""The wheel: built from the tree, installed elsewhere, it has all it needs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "checkpoints", "lightning_logs"
)


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # a copy, because building leaves files behind
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT, symlinks=True)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "source"))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    site = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-compile", "--target", str(site), str(wheel))
    return site


def run(installed: Path, folder: Path, *command: str) -> str:
    """Run a command in another folder with nothing of the tree but what was installed."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_of_the_package_travels(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    found = [
        Path(folder, name).relative_to(ROOT).as_posix()
        for folder, _, members in os.walk(ROOT / "ovseg", followlinks=True)
        for name in members
        if "__pycache__" not in folder
    ]
    assert len(found) > 40
    assert sorted(set(found) - names) == []
    assert not [name for name in names if name.startswith(("tests/", "tools/", "benchmarks/"))]


def test_four_stages_and_two_vocabularies_are_there(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".yaml")}
    stages = "1_annotated 2_grounding 3_synthetic 4_segmenter".split()
    assert {f"ovseg/clipart/configs/{stage}.yaml" for stage in stages} <= names
    assert {"ovseg/vocabularies/clipart.yaml", "ovseg/vocabularies/voc.yaml"} <= names


def test_no_requirement_pulls_torchvision(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
    requirements = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert any("lightning" in line and ">=2.6.4" in line for line in requirements)
    assert not [line for line in requirements if "torchvision" in line]


def test_pins_cover_every_requirement():
    import configparser
    import re

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    texts = setup["options"]["install_requires"] + setup["options.extras_require"]["test"]
    wanted = {re.match(r"[\w-]+", line).group().lower() for line in texts.split("\n") if line}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert wanted - pinned == set()
    assert lines[-1] == "-e ."


def test_help_from_the_installed_wheel(installed, tmp_path):
    script = str(installed / "bin" / "ovseg")
    text = run(installed, tmp_path, sys.executable, script, "--help")
    for verb in ("fit", "validate", "test", "predict", "quickstart"):
        assert verb in text


def test_models_and_configs_from_the_installed_wheel(installed, tmp_path):
    code = """
import ovseg
from ovseg.backbones.unet import UNetBackbone
from ovseg.clipart.weights import folder
from ovseg.quickstart import config
from ovseg.vocabulary import Vocabulary
print(ovseg.__file__)
print(config("1_annotated"))
print(len(Vocabulary.load("voc").classes))
"""
    where, stage, classes = run(installed, tmp_path, sys.executable, "-c", code).split()
    assert Path(where).is_relative_to(installed)
    assert Path(stage).is_file() and Path(stage).is_relative_to(installed)
    assert classes == "20"
