"""A third party's backbone, grounder, annotator and segmenter: four stages by YAML alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ovseg.__main__ import main

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """A folder in which all stages have run, the first as a process of its own."""
    folder = tmp_path_factory.mktemp("chain")
    for part in ("acme", "configs"):
        shutil.copytree(TESTS / "plugins" / part, folder / part)
    done = subprocess.run(
        [sys.executable, "-m", "ovseg", "predict", "-c", "configs/1_annotated.yaml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    before, threads = os.getcwd(), torch.get_num_threads()
    os.chdir(folder)
    try:
        for arguments in (
            ["fit", "-c", "configs/2_grounding.yaml"],
            ["test", "-c", "configs/2_grounding.yaml", "--model.init_args.start=out/grounder"],
            ["predict", "-c", "configs/3_synthetic.yaml"],
            ["fit", "-c", "configs/4_segmenter.yaml"],
            ["test", "-c", "configs/4_segmenter.yaml", "--ckpt_path=out/4/last.ckpt"],
        ):
            assert main([*arguments, "--trainer.enable_progress_bar=false"]) == 0
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)
    return folder / "out"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_datasets_say_who_made_them(chain):
    first, second = read(chain / "A" / "dataset.json"), read(chain / "B" / "dataset.json")
    assert first["annotator"]["source"] == "acme colours"
    assert len(first["requested_classes"]) == 15
    assert first["backbone"]["model"] == second["backbone"]["model"] == "acme/toy"
    assert second["annotator"]["source"] == "acme.grounder.NearnessGrounder"
    assert len(second["requested_classes"]) == 20


def test_the_grounder_tells_unseen_names_apart(chain):
    scores = read(chain / "2" / "results.json")
    assert scores["two_seen"]["choice"] > 90
    assert scores["two_unseen"]["choice"] > 75
    assert scores["two_unseen"]["miou"] > scores["two_unseen"]["swapped"]["miou"] + 20


def test_the_segmenter_has_learnt_classes_that_nobody_annotated(chain):
    scores = read(chain / "4" / "results.json")["boxes"]
    assert scores["seen"] > 50 and scores["unseen"] > 30
    assert scores["background"] > 80
