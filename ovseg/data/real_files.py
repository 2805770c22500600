"""Files of real images: which one cannot be read is said by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

NOT_DAMAGE = (MemoryError, Image.DecompressionBombError, Warning)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Name the file that is read inside, if it does not decode.

    Raises:
        ValueError: If it does not.
    """
    try:
        yield
    except Exception as error:  # in damaged files decoders stumble over anything
        if isinstance(error, NOT_DAMAGE) or getattr(error, "errno", None):  # the system's
            raise
        raise ValueError(f"{path} cannot be read: it is empty or damaged; fetch it again") from None


class ReadingStep:
    """A loading step of a pipeline, which names the file that it cannot read.

    Args:
        step: Maps facts about a sample to more of them.
        key: Which of the facts is the file's path.
    """

    def __init__(self, step: Callable[[dict], dict], key: str) -> None:
        self.step, self.key = step, key

    def __call__(self, facts: dict) -> dict:
        """Take the step.

        Raises:
            ValueError: If the file is empty or damaged.
        """
        with reading(facts[self.key]):
            return self.step(facts)


def check_mode(path: str) -> None:
    """Refuse a label map that is not one byte per pixel, which would be read as other ids.

    Raises:
        ValueError: If it is not, or cannot be read.
    """
    with reading(path), Image.open(path) as picture:
        mode = picture.mode
    if mode not in ("1", "L", "P"):
        raise ValueError(
            f"{path} is a picture of mode {mode}, no label map: save the class ids as "
            "8-bit grey levels or palette indices"
        )


def check_list(dataset: Mapping[str, Any]) -> None:
    """Refuse a list of names without a name.

    Raises:
        ValueError: If the dataset has one.
    """
    path = Path(dataset.get("data_root") or ".", dataset.get("ann_file") or ".")
    if path.is_file() and not path.read_bytes().strip():
        raise ValueError(
            f"the list {path.absolute()} is empty: it must name the images, one per line; write "
            "it again, or give another one (ann_file)"
        )
