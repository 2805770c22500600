import pickle

import pytest

from ovseg.errors import one_line, unwrap


def chain(*texts: str) -> Exception:
    """Return nested errors, the outermost first."""
    error = None
    for text in reversed(texts):
        outer = ValueError(text)
        outer.__cause__ = error
        error = outer
    return error


def test_a_rank_whose_neighbour_failed_points_to_its_reason():
    error = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:31361.")
    assert one_line(error) == "another process of this run has ended; its reason stands above"


def test_the_innermost_cause_is_shown():
    error = chain(
        'Parser key "model":\n  Does not validate',
        'Parser key "model":\n  Does not validate',
        "Does not validate against any of the Union subtypes",
        'Parser key "hidden":\n  Expected',
        "Expected a <class 'int'>. Got value: x",
    )
    assert one_line(error) == "model.hidden: Expected a <class 'int'>. Got value: x"


def test_a_constructors_error_of_any_kind_is_the_users():
    error = ValueError("Does not validate against any of the Union subtypes\n...")
    error.__cause__ = TypeError("takes no argument 'x'")
    assert one_line(error) == "TypeError: takes no argument 'x'"
    assert one_line(TypeError("a bug")) is None


def test_our_own_message_is_kept_whatever_caused_it():
    try:
        try:
            {}["key"]
        except KeyError:
            raise ValueError("no such class") from None
    except ValueError as error:
        assert one_line(error) == "no such class"
        assert unwrap(error) == (error, [], False)


def test_a_wrapper_without_a_cause_gives_its_last_line():
    assert one_line(ValueError('Parser key "a":\n  Wrong\n')) == "Wrong"


def test_a_workers_error_is_unwrapped():
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent"
    error = ValueError(f"{text} call last):\n  File ...\nValueError: shard 3 is truncated\n")
    assert one_line(error) == "shard 3 is truncated"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError("no file x"), "no file x"),
        (PermissionError("cannot write to y"), "cannot write to y"),
        (ImportError("OpenCV needs\nlibgl1"), "OpenCV needs libgl1"),
        (pickle.UnpicklingError("..."), "a file of weights cannot be read"),
        (RuntimeError("PytorchStreamReader failed reading"), "a file of weights cannot be read"),
        (ValueError(""), "ValueError"),
    ],
)
def test_one_line_of(error, expected):
    line = one_line(error)
    assert line.startswith(expected) and "\n" not in line


def test_a_checkpoint_of_another_architecture():
    import torch

    first, second = torch.nn.Linear(2, 3), torch.nn.Linear(4, 3)
    with pytest.raises(RuntimeError) as caught:
        first.load_state_dict(second.state_dict())
    line = one_line(caught.value)
    assert "another architecture" in line and "weight, [3, 4] in the checkpoint" in line
    with pytest.raises(RuntimeError) as caught:
        first.load_state_dict({"bias": torch.zeros(3)})
    assert "fit at weight" in one_line(caught.value)
    assert one_line(RuntimeError("out of memory")) is None


def test_errors_of_the_system_come_without_their_number():
    assert one_line(OSError(28, "cannot write x (No space left on device)")) == (
        "cannot write x (No space left on device)"
    )
    try:
        open("/nowhere/file")
    except OSError as error:
        assert one_line(error) == "/nowhere/file: No such file or directory"
