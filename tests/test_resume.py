"""ovseg.resume: what is no checkpoint of `ovseg fit` is refused before anything is built."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_cli import config

from ovseg.__main__ import main
from ovseg.resume import check_checkpoint

STATE = {"layers.weight": torch.zeros(300, 300)}
CHECKPOINT = {"state_dict": STATE, "pytorch-lightning_version": "2.6.0"}
NONE, DAMAGED = "is not a checkpoint of `ovseg fit`", "the file is damaged"


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch) -> None:
    """Write a good checkpoint, and others, into the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.save(CHECKPOINT, "good.ckpt")
    torch.save(STATE, "plain.pth")
    torch.save([STATE], "list.ckpt")
    save_file(STATE, "model.safetensors")
    content = Path("good.ckpt").read_bytes()
    Path("half.ckpt").write_bytes(content[: len(content) // 2])
    Path("empty.ckpt").write_bytes(b"")
    Path("last").write_bytes(b"a file that has only the name of what Lightning looks up")
    Path("stage.yaml").write_text(yaml.safe_dump(config()))


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize(("name", "words"), [("plain.pth", NONE), ("half.ckpt", DAMAGED)])
def test_every_verb_says_it_in_one_line(verb, name, words, capfd):
    assert main([verb, "-c", "stage.yaml", f"--ckpt_path={name}"]) == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith(f"ovseg {verb}: ") and error.count("\n") == 0, error
    assert name in error and words in error


@pytest.mark.parametrize(
    ("name", "words"),
    [("list.ckpt", NONE), ("model.safetensors", NONE), ("empty.ckpt", DAMAGED)],
)
def test_other_files_are_named(name, words):
    with pytest.raises(ValueError, match=f"{name} .*{words}|{name} {words}"):
        check_checkpoint(name)


def test_weights_alone_are_told_where_to_go():
    with pytest.raises(ValueError, match="go to model.init_args.segmenter.init_args.checkpoint$"):
        check_checkpoint(Path("plain.pth"))


@pytest.mark.parametrize("path", ["good.ckpt", "last", "best", ".", "none.ckpt", None])
def test_what_is_one_or_is_left_to_lightning_passes(path):
    check_checkpoint(path)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.ckpt", "HTTPS://example.org/a.ckpt"])
def test_a_web_address_is_refused(address):
    """Lightning would unpickle what it finds there."""
    with pytest.raises(ValueError, match="is a web address.*: download it and give the file"):
        check_checkpoint(address)
