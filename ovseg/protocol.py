"""What a segmenter's number is a number of: classes, competition, background, training, tests."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ovseg.data.base import IGNORED_UNSEEN, PSEUDO_LABELS, UNSEEN_NAMES
from ovseg.vocabulary import Vocabulary

SETTINGS = {
    "generalised": "all of them compete for every pixel",
    "novel-only": "only unseen classes can be predicted, and pixels of seen ones are ignored",
}
UNSEEN_PIXELS = {
    "ignored": "pixels of unseen classes are ignored (255) in real training images",
    "left out": "real training images with a pixel of an unseen class are left out",
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """Another's row of a table; mIoU in percent.

    Attributes:
        method: Its name.
        training: What it was trained with.
        seen: mIoU of the seen classes.
        unseen: mIoU of the unseen classes.
        harmonic: Harmonic mean of both.
        source: Where the figures stand.
        incomparable: Why they must not stand beside figures of this protocol; None if they may.
    """

    method: str
    training: str
    seen: float
    unseen: float
    harmonic: float
    source: str
    incomparable: str | None = None

    def __post_init__(self) -> None:
        for key in ("seen", "unseen", "harmonic"):
            if not isinstance(getattr(self, key), int | float):
                raise ValueError(f"{key} of {self.method} must be a number")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The choices behind a number of zero-shot segmentation, and others' numbers beside it.

    Attributes:
        name: Short name; None if nobody has named these choices.
        title: One line.
        vocabulary: Name or path of the vocabulary.
        split: Its split.
        background_predicted: Whether background can be predicted.
        background_in_mean: Whether its IoU counts among those of the seen classes.
        score_background: Whether pixels whose truth is background are scored; else ignored.
        setting: One of `SETTINGS`.
        unseen_pixels: One of `UNSEEN_PIXELS`.
        unseen_names: Whether the names of unseen classes may be known in training.
        transductive: Whether pixels without annotation may be learnt from.
        allows_unseen_masks: Whether masks of unseen classes may be: a bound, no zero-shot result.
        image_size: Height and width of test images; None scores each at its own size.
        test_images: Number of images that others' figures are of; None if nobody has fixed it.
        flips: Whether logits are averaged with those of the mirrored image.
        published: Others' rows.

    Raises:
        ValueError: If a choice is none, or contradicts another.
    """

    name: str | None
    title: str
    vocabulary: str
    split: str
    background_predicted: bool = True
    background_in_mean: bool = False
    score_background: bool = True
    setting: str = "generalised"
    unseen_pixels: str = "ignored"
    unseen_names: bool = True
    transductive: bool = False
    allows_unseen_masks: bool = False
    image_size: int | None = None
    test_images: int | None = None
    flips: bool = False
    published: tuple[Published, ...] = ()

    def __post_init__(self) -> None:
        for key, choices in (("setting", SETTINGS), ("unseen_pixels", UNSEEN_PIXELS)):
            if getattr(self, key) not in choices:
                raise ValueError(
                    f"{key} must be {' or '.join(choices)}, got {getattr(self, key)!r}"
                )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" and not isinstance(value, bool):
                raise ValueError(f"{field.name} must be true or false, got {value!r}")
        for key, what in (("image_size", "pixels"), ("test_images", "images")):
            value = getattr(self, key)
            if value is not None and not (isinstance(value, int) and value > 0):
                raise ValueError(f"{key} must be a number of {what} or null, got {value!r}")
        if self.background_in_mean and not (self.background_predicted and self.score_background):
            raise ValueError(
                "background's IoU cannot be in the mean while it is not predicted or its pixels "
                "are ignored: set background_predicted and score_background, or leave "
                "background_in_mean"
            )
        if self.novel_only and (self.background_predicted or self.score_background):
            raise ValueError(
                "in the novel-only setting background cannot compete: set background_predicted and "
                "score_background to false"
            )

    @classmethod
    def load(cls, source: str | Path) -> Protocol:
        """Load a shipped protocol by name ("voc_zs3") or any by the path of its YAML.

        Raises:
            ValueError: If there is no such protocol, or the file is not one.
        """
        path = files("ovseg") / "protocols" / f"{source}.yaml"
        if not path.is_file():
            path = Path(source)
        if not path.is_file():
            near = difflib.get_close_matches(str(source), names(), n=3, cutoff=0.4) or names()
            raise ValueError(
                f"no protocol {str(source)!r}: give {' or '.join(near)}, or a YAML file's path"
            )
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
            rows = tuple(Published(**row) for row in data.pop("published", ()))
            return cls(**{**data, "split": str(data["split"])}, published=rows)
        except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
            text = str(error).replace(".__init__()", "")
            raise ValueError(f"{str(source)!r} is no protocol: {text}") from None

    @property
    def novel_only(self) -> bool:
        """Whether only unseen classes can be predicted."""
        return self.setting == "novel-only"

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse other classes or another split than the protocol's.

        Raises:
            ValueError: If they differ.
        """
        own = Vocabulary.load(self.vocabulary, self.split)
        if (own.digest, own.unseen) != (vocabulary.digest, vocabulary.unseen):
            raise ValueError(
                f"protocol {self.name} is one of vocabulary {own.name!r}, split {own.split!r}; the "
                f"data module has {vocabulary.name!r}, split {vocabulary.split!r}: set its "
                "vocabulary and split, or take another protocol"
            )

    def check_training(self, practices: Collection[str], where: str) -> None:
        """Refuse what was, or would be, done in training and the protocol rules out.

        Args:
            practices: As `Stream.practices` has them.
            where: What they come from, in words.

        Raises:
            ValueError: If a practice is ruled out.
        """
        if PSEUDO_LABELS in practices and not self.transductive:
            raise ValueError(
                f"{where} has {PSEUDO_LABELS}, which protocol {self.name} rules out: leave them "
                "out, or state it in a protocol of your own (transductive: true)"
            )
        if UNSEEN_NAMES in practices and not self.unseen_names:
            raise ValueError(
                f"{where} has {UNSEEN_NAMES}, which protocol {self.name} rules out: leave them "
                "out, or state it in a protocol of your own (unseen_names: true)"
            )
        if IGNORED_UNSEEN in practices and self.unseen_pixels == "left out":
            raise ValueError(
                f"{where} has {IGNORED_UNSEEN}, which protocol {self.name} leaves out: leave them "
                "out (leave_out_unseen of MMSegDataset), or state it in a protocol of your own "
                "(unseen_pixels: ignored)"
            )

    def silent(self, vocabulary: Vocabulary) -> tuple[int, ...]:
        """Return the ids of classes that cannot be predicted."""
        background = () if self.background_predicted else (0,)
        return (*background, *(vocabulary.seen if self.novel_only else ()))

    def facts(self) -> dict[str, Any]:
        """Return every choice as JSON-ready values, without others' rows."""
        facts = asdict(self)
        del facts["published"]
        return facts


def names() -> list[str]:
    """Return the names of the shipped protocols."""
    folder = files("ovseg") / "protocols"
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml"))


def elsewhere(protocol: Protocol) -> list[Published]:
    """Return others' rows that stand in other shipped protocols alone: none is comparable."""
    own = {(row.method, row.seen, row.unseen) for row in protocol.published}
    found: dict[tuple, Published] = {}
    for other in sorted(map(Protocol.load, names()), key=_fitting_rows, reverse=True):
        for row in other.published:
            reason = f"another protocol, {other.name}: {other.title}"
            figures = (row.method, row.seen, row.unseen)
            if figures not in own:
                found.setdefault(figures, replace(row, incomparable=reason))
    return list(found.values())


def _fitting_rows(protocol: Protocol) -> int:
    return sum(row.incomparable is None for row in protocol.published)


def words(protocol: Protocol, vocabulary: Vocabulary, seen: str = "") -> str:
    """Say a protocol in some sentences.

    Args:
        protocol: What is scored.
        vocabulary: Its classes.
        seen: How the segmenter sees an image, as `Inference.in_words` says it.
    """
    unseen = ", ".join(vocabulary[i].name for i in vocabulary.unseen)
    allowed = {
        "the names of unseen classes": protocol.unseen_names,
        "pixels without annotation": protocol.transductive,
        "masks of unseen classes (a bound, no zero-shot result)": protocol.allows_unseen_masks,
    }
    used = " and ".join(what for what, yes in allowed.items() if yes) or "nothing of unseen classes"
    size = f"at {protocol.image_size} pixels" if protocol.image_size else "at their own size"
    count = f"The {protocol.test_images:,} test" if protocol.test_images else "Test"
    return (
        f"Protocol {protocol.name}: {protocol.title}. {len(vocabulary.seen)} seen and "
        f"{len(vocabulary.unseen)} unseen classes ({unseen}); {SETTINGS[protocol.setting]}. "
        f"{_background(protocol)} Training may use {used}; "
        f"{UNSEEN_PIXELS[protocol.unseen_pixels]}. {count} images are scored {size}, "
        f"{'averaged with their mirror images' if protocol.flips else 'unmirrored'}"
        f"{f', {seen}' if seen else ''}."
    )


def _background(protocol: Protocol) -> str:
    """Say in one sentence what background is."""
    if not protocol.score_background:
        predicted = "can be predicted" if protocol.background_predicted else "is no class"
        return f"Background {predicted}; its pixels are ignored."
    predicted = "a class that competes" if protocol.background_predicted else "never predicted"
    mean = "counts as a seen class in the mean" if protocol.background_in_mean else "is given apart"
    return f"Background is {predicted}; its pixels are scored, its IoU {mean}."
