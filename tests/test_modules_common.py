import json
from types import SimpleNamespace

import pytest
import torch

from ovseg.modules.common import by_class, check_output, check_writable, write_results
from ovseg.vocabulary import Vocabulary


def test_results_are_plain_json_and_written_as_a_whole(tmp_path):
    trainer = SimpleNamespace(
        default_root_dir=tmp_path / "run", is_global_zero=True, fast_dev_run=False
    )
    results = {"a": {"x": torch.tensor(1 / 3), "n": 3, "none": float("nan"), "on": True}}
    path = write_results(SimpleNamespace(trainer=trainer), results)
    assert json.loads(path.read_text()) == {"a": {"x": 0.3333, "n": 3, "none": None, "on": True}}
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    trainer.is_global_zero = False
    path.unlink()
    write_results(SimpleNamespace(trainer=trainer), results)
    assert not path.exists()


def test_classes_without_a_value_are_left_out():
    values = torch.full((21,), float("nan"))
    values[0], values[2] = 90.0, 50.0
    assert by_class(values, Vocabulary.load("clipart")) == {"bus": 50.0}


def test_what_cannot_be_written_is_told_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match="cannot write"):
        check_writable(tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="holds no grounder"):
        check_output(tmp_path / "file", "grounder")
    check_output(tmp_path / "new" / "grounder", "grounder")
    assert not (tmp_path / "new" / "grounder").exists()
    assert not list((tmp_path / "new").iterdir())
