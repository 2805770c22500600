"""One line for the user out of an exception.

jsonargparse wraps a constructor's error several times, each time repeating all that was given; the
cause that is wrapped innermost is what the user must see.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

WRAPPERS = re.compile(
    r"^\W*(Parser key \"|Does not validate against|Problem with given class_path|"
    r"Expected a path but|Type \S.* expects a function or a callable)"
)
KEY = re.compile(r"^Parser key \"([^\"]+)\"")


class VerbParser(argparse.ArgumentParser):
    """The parser of a verb; what is wrong with the arguments is raised, not printed with usage."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises:
            ValueError: Always.
        """
        raise ValueError(message)


def run_tool(name: str, run: Callable[[], Any]) -> int:
    """Run what a tool does, for its exit code.

    Returns:
        0, or 2 after one line of an error that is the user's to mend; others are raised.
    """
    try:
        run()
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"{name}: {line}", file=sys.stderr)
        return 2
    return 0


def one_line(error: BaseException) -> str | None:
    """Return one line for an error that is the user's to mend, None for any other.

    Errors of arguments, values, files and imports, and whatever a constructor raised while the
    configuration was instantiated, are the user's.
    """
    cause, keys, wrapped = unwrap(error)
    text = _message(cause)
    if isinstance(cause, RuntimeError) and "in loading state_dict" in text:
        return _other_architecture(text)
    if isinstance(cause, RuntimeError) and "Connection closed by peer" in text:
        return "another process of this run has ended; its reason stands above"
    if isinstance(cause, pickle.UnpicklingError) or "PytorchStreamReader" in text:
        return "a file of weights cannot be read: it is damaged, or holds pickled objects"
    kind = type(cause).__name__
    users = (ValueError, OSError, ImportError)
    named = kind in ("ArgumentError", "MisconfigurationException", "PathError")
    if not (wrapped or named or isinstance(cause, users)):
        return None
    if wrapped and not (named or isinstance(cause, (*users, KeyError))):
        text = f"{kind}: {text}"
    where = f"{'.'.join(keys)}: " if keys and text.startswith(("Expected", "Option", "Key")) else ""
    return where + text


def unwrap(error: BaseException) -> tuple[BaseException, list[str], bool]:
    """Follow jsonargparse's wrapping inwards.

    Returns:
        The innermost cause, the keys of the configuration on the way, whether it was wrapped.
    """
    keys: list[str] = []
    wrapped = False
    while WRAPPERS.match(str(error)):
        found = KEY.match(str(error))
        if found and keys[-1:] != [found[1]]:
            keys.append(found[1])
        wrapped = True
        inner = error.__cause__ or error.__context__
        if inner is None:
            break
        error = inner
    return error, keys, wrapped


def _message(error: BaseException) -> str:
    """Return the error's text on one line; of a DataLoader worker's, the original one."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:  # without the number
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    elif WRAPPERS.match(text):  # wrapped, but without a cause to follow
        text = text.splitlines()[-1]
    return " ".join(text.split()) or type(error).__name__


def _other_architecture(text: str) -> str:
    """Shorten torch's list of every key that does not fit."""
    first = re.search(r"(?:key\(s\) in state_dict: |size mismatch for )\"?([\w.]+)", text)
    shape = re.search(
        r"shape torch.Size\((\[.*?\])\).*?shape in current model is "
        r"torch.Size\((\[.*?\])\)",
        text,
    )
    detail = f", {shape[1]} in the checkpoint and {shape[2]} in the model" if shape else ""
    name = first[1] if first else "unknown"
    return f"the checkpoint is of another architecture: it does not fit at {name}{detail}"


@contextmanager
def importing_mmseg() -> Iterator[None]:
    """Import parts of MMSegmentation without its warnings.

    Raises:
        ImportError: If it, or the system library that OpenCV needs, is missing; says what to do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImportError as error:
            raise ImportError(mmseg_hint(error)) from error


def mmseg_hint(error: ImportError) -> str:
    """Say in one line what an import error of MMSegmentation means."""
    if "libGL" in str(error) or "libgthread" in str(error):
        return f"OpenCV needs a system library ({error}): install libgl1 (Debian) or mesa-libGL"
    return (
        f"MMSegmentation does not import ({error}): install onedl-mmengine, onedl-mmcv and "
        "onedl-mmsegmentation"
    )
