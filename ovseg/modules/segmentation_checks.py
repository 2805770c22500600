"""What a segmenter's training and tests refuse before they give numbers of something else."""

from __future__ import annotations

from ovseg.protocol import Protocol
from ovseg.structures import Batch
from ovseg.vocabulary import Vocabulary


def agreed_protocol(
    source: str | None, vocabulary: Vocabulary, asked: dict[str, bool | None]
) -> Protocol:
    """Load a protocol that fits, or make one without a name of what is asked for.

    Args:
        source: Name or path of a protocol; None makes one.
        vocabulary: The data module's.
        asked: Choices of a protocol; those that are None are left to it.

    Raises:
        ValueError: If the protocol is unknown, of other classes, or contradicts what is asked for.
    """
    asked = {key: value for key, value in asked.items() if value is not None}
    if source is None:
        where = {"vocabulary": vocabulary.name, "split": vocabulary.split}
        return Protocol(name=None, title="choices of a configuration", **where, **asked)
    protocol = Protocol.load(source)
    protocol.check(vocabulary)
    for key, value in asked.items():
        if value != getattr(protocol, key):
            raise ValueError(
                f"{key} is {value}, but {not value} in protocol {protocol.name}: leave one of them "
                "out"
            )
    return protocol


def check_precision(precision: str) -> None:
    """Refuse a trainer's precision that gives the weights another dtype than images have.

    Raises:
        ValueError: If it does.
    """
    if precision.endswith("-true") and precision != "32-true":
        raise ValueError(
            f"a segmenter is given images in float32, trainer.precision {precision} makes its "
            "weights another dtype: choose 32-true, or a mixed one such as bf16-mixed"
        )


def sizes_of(batch: Batch) -> list[tuple[int, int]]:
    """Return height and width of each image without its padding."""
    if batch.sizes is None:
        return [tuple(batch.images.shape[-2:])] * len(batch)
    return [(height, width) for height, width in batch.sizes.tolist()]


def check_image_size(protocol: Protocol, batch: Batch) -> None:
    """Refuse test images that have not the protocol's size, if it has one.

    Raises:
        ValueError: If one has not.
    """
    size = protocol.image_size
    wrong = [found for found in sizes_of(batch) if found != (size, size)]
    if size is not None and wrong:
        raise ValueError(
            f"protocol {protocol.name} scores images of {size} x {size} pixels, those of "
            f"the test stream have {wrong[0][0]} x {wrong[0][1]}"
        )


def check_own_size(protocol: Protocol, batch: Batch) -> None:
    """Refuse label maps of another size than their images', where a protocol scores them at it.

    Raises:
        ValueError: If the protocol has a name, and a size is known to be another.
    """
    if not protocol.name or protocol.image_size is not None or batch.original_sizes is None:
        return
    own = [(height, width) for height, width in batch.original_sizes.tolist()]
    for index, size, found in zip(batch.indices.tolist(), own, sizes_of(batch), strict=True):
        if found != size:
            raise ValueError(
                f"protocol {protocol.name} scores images at their own size; number {index} of the "
                f"stream has {size[0]} x {size[1]} pixels, its label map {found[0]} x {found[1]}: "
                "leave out transforms that change it, such as Resize"
            )
