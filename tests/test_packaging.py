"""The wheel: built from the tree, installed elsewhere, it has all it needs."""

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
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


def run(installed: Path, folder: Path, *command: str, timeout: int = 300) -> str:
    """Run a command in another folder with nothing of the tree but what was installed."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
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
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"].values()
    texts = "".join((setup["options"]["install_requires"], *extras))
    wanted = {re.match(r"[\w-]+", line).group().lower() for line in texts.split("\n") if line}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert wanted - pinned == set()
    assert lines[-1] == "-e ."


def test_help_from_the_installed_wheel(installed, tmp_path):
    script = str(installed / "bin" / "ovseg")
    text = run(installed, tmp_path, sys.executable, script, "--help")
    for verb in ("fit", "validate", "test", "predict", "quickstart", "report"):
        assert verb in text


def test_models_from_the_installed_wheel(installed, tmp_path):
    code = """
import ovseg
from ovseg import GroundedDiffusion
from ovseg.annotators.mmseg import MMSegAnnotator
print(ovseg.__file__)
MMSegAnnotator("clipart")
made = GroundedDiffusion.from_pretrained("clipart")("a photo of a house", names=["house"], seed=7)
print(made.images[0].size, made.masks["house"].shape, sep=";")
"""
    where, shapes = run(installed, tmp_path, sys.executable, "-c", code).splitlines()
    assert Path(where).is_relative_to(installed)
    assert shapes == "(64, 64);(64, 64)"


def kill_when(done, installed: Path, folder: Path, command: list[str]) -> None:
    """Start a command and kill it and its children with -9 once ``done()``."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    silent = subprocess.DEVNULL
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=silent, stderr=silent, start_new_session=True
    )
    try:
        end = time.monotonic() + 300
        while not done():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.kill()
        for entry in Path("/proc").iterdir():  # its children have process groups of their own
            with suppress(OSError):
                if entry.name.isdigit() and str(folder) in (entry / "cmdline").read_text():
                    os.kill(int(entry.name), signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_quickstart_from_the_installed_wheel_survives_kills(installed, tmp_path):
    script, out = str(installed / "bin" / "ovseg"), tmp_path / "run"
    command = [sys.executable, script, "quickstart", "--out", "run"]
    command += ["--scale", "0.04"]
    shards, models = out / "1_annotated" / "train", out / "2_grounding" / "checkpoints"
    kill_when(lambda: any(shards.glob("*.tmp")), installed, tmp_path, command)
    assert not (shards / "dataset.json").exists()
    kill_when(lambda: any(models.glob("*.ckpt")), installed, tmp_path, command)
    assert not (out / "2_grounding" / "grounder").exists()
    text = run(installed, tmp_path, *command, timeout=1500)
    assert "stage 1, annotated images: done" in text
    assert "stage 2, the grounding module\n" in text  # killed, so not done
    report = json.loads((out / "report.json").read_text())
    assert set(report) == {
        *("split", "seen", "unseen", "grounding", "choice", "presence", "segmentation"),
        "labels_of_stage_3",
        *("annotator", "counts", "excluded", "seconds"),
    }
    assert report["annotator"]["miou"] > 50
    assert report["grounding"]["ceiling"]["one_object"]["seen"] > 50
    assert (out / "report.html").read_text().endswith("</html>")
    again = run(installed, tmp_path, *command)
    assert again.count(": done") == 8
