"""Protocols: the shipped ones, their page in the docs, what a user can get wrong."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ovseg.data.base import IGNORED_UNSEEN, PSEUDO_LABELS, UNSEEN_NAMES
from ovseg.protocol import Protocol, names, words
from ovseg.vocabulary import Vocabulary

DOCS = Path(__file__).parents[1] / "docs" / "protocols.md"
OWN = {"name": "own", "title": "mine", "vocabulary": "clipart", "split": "1"}
NOVEL = {"setting": "novel-only", "background_predicted": False, "score_background": False}


def write(folder, **changes) -> str:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({**OWN, **changes}))
    return str(path)


def load(name: str) -> tuple[Protocol, Vocabulary]:
    protocol = Protocol.load(name)
    return protocol, Vocabulary.load(protocol.vocabulary, protocol.split)


@pytest.mark.parametrize("name", names())
def test_shipped_protocols_say_what_they_are(name):
    protocol, vocabulary = load(name)
    assert protocol.name == name
    protocol.check(vocabulary)
    said = words(protocol, vocabulary)
    assert said.startswith(f"Protocol {name}: {protocol.title}.")
    assert f"{len(vocabulary.unseen)} unseen classes" in said
    for row in protocol.published:
        harmonic = 2 * row.seen * row.unseen / (row.seen + row.unseen)
        assert row.harmonic == pytest.approx(harmonic, abs=0.15)  # as printed
        assert row.source


def test_rows_beside_the_standard_protocol():
    rows = {row.method: row for row in Protocol.load("voc_zs3").published}
    assert (rows["SPNet"].seen, rows["SPNet"].unseen, rows["SPNet"].harmonic) == (77.8, 25.8, 38.8)
    assert (rows["Li et al., C"].unseen, rows["Li et al., C"].incomparable) == (63.2, None)
    assert [m for m, row in rows.items() if row.incomparable] == ["STRICT"]
    for name in ("voc_1", "voc_zs3net_4", "coco_65_15", "coco_stuff_156_15"):
        assert all(row.incomparable for row in Protocol.load(name).published)


def table_row(name: str) -> str:
    protocol, vocabulary = load(name)
    counts = f"{len(vocabulary.seen)} / {len(vocabulary.unseen)}"
    size = str(protocol.image_size or "own")
    yes = {True: "yes", False: "no"}
    cells = (
        f"`{name}`",
        f"`{protocol.vocabulary}`, `{protocol.split}`",
        counts,
        protocol.setting,
        yes[protocol.background_predicted],
        yes[protocol.score_background],
        yes[protocol.background_in_mean],
        protocol.unseen_pixels,
        size,
        str(sum(row.incomparable is None for row in protocol.published)),
    )
    return f"| {' | '.join(cells)} |"


def test_the_table_of_the_docs_is_that_of_the_files():
    found = re.findall(r"^\| `\w+` \| `\w+`, `\w+` \|.*$", DOCS.read_text(), re.MULTILINE)
    assert found == [table_row(name) for name in names()]
    for name in names():
        protocol = Protocol.load(name)
        assert protocol.unseen_names and not protocol.flips
        assert not (protocol.transductive or protocol.allows_unseen_masks)


def test_who_cannot_be_predicted(tmp_path):
    clipart = Vocabulary.load("clipart")
    assert Protocol.load("clipart_1").silent(clipart) == ()
    assert Protocol.load("voc_zs3").silent(Vocabulary.load("voc", "zs3")) == (0,)
    novel = Protocol.load(write(tmp_path, **NOVEL))
    assert novel.silent(clipart) == (0, *clipart.seen)
    assert "only unseen classes can be predicted" in words(novel, clipart)


def test_words_of_every_choice(tmp_path):
    changes = {
        "transductive": True,
        "allows_unseen_masks": True,
        "flips": True,
        "unseen_names": False,
        "background_predicted": False,
        "image_size": 48,
        "test_images": 1200,
    }
    said = words(Protocol.load(write(tmp_path, **changes)), Vocabulary.load("clipart"))
    assert "may use pixels without annotation and masks of unseen classes (a bound" in said
    assert "never predicted; its pixels are scored" in said
    assert (
        "The 1,200 test images are scored at 48 pixels, averaged with their mirror images" in said
    )
    assert said.endswith("mirror images.")
    seen = words(Protocol.load("voc_zs3"), Vocabulary.load("voc", "zs3"), "seen scaled by 0.5, 1")
    assert seen.endswith("scored at their own size, unmirrored, seen scaled by 0.5, 1.")
    strict = Protocol.load(write(tmp_path, unseen_names=False))
    assert "may use nothing of unseen classes" in words(strict, Vocabulary.load("clipart"))


def test_other_classes_or_another_split_are_refused():
    protocol = Protocol.load("voc_zs3")
    with pytest.raises(
        ValueError, match="'voc', split 'zs3'; the data module has 'voc', split '1'"
    ):
        protocol.check(Vocabulary.load("voc"))
    with pytest.raises(ValueError, match="has 'clipart', split '1': set its vocabulary"):
        protocol.check(Vocabulary.load("clipart"))


def test_an_unknown_protocol_gets_the_nearest():
    with pytest.raises(ValueError, match="no protocol 'voc_zs4': give voc_zs3 or"):
        Protocol.load("voc_zs4")
    with pytest.raises(ValueError, match="clipart_1 or .*voc_zs3net_8, or a YAML file's path"):
        Protocol.load("???")


ROW = {"method": "m", "training": "t", "seen": "x", "unseen": 1, "harmonic": 1, "source": "s"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"setting": "easy"}, "setting must be generalised or novel-only, got 'easy'"),
        ({"unseen_pixels": "kept"}, "unseen_pixels must be ignored or left out"),
        ({"flips": "yes"}, "flips must be true or false, got 'yes'"),
        ({"image_size": 0}, "image_size must be a number of pixels or null"),
        ({"test_images": "all"}, "test_images must be a number of images or null"),
        ({"background_in_mean": True, "score_background": False}, "background's IoU cannot"),
        ({"background_in_mean": True, "background_predicted": False}, "background's IoU cannot"),
        ({"setting": "novel-only"}, "background cannot compete"),
        ({"colour": 3}, "unexpected keyword argument 'colour'"),
        ({"published": [ROW]}, "seen of m must be a number"),
        ({"published": 3}, "no protocol"),
    ],
)
def test_a_file_that_is_no_protocol(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"is no protocol: .*{message}|{message}"):
        Protocol.load(write(tmp_path, **changes))


def test_a_file_of_something_else(tmp_path):
    for text in ("[1, 2]", "a: {", "", "name: x\n"):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(ValueError, match="own.yaml' is no protocol"):
            Protocol.load(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("name", "practices", "message"),
    [
        ("voc_zs3", {PSEUDO_LABELS}, "data.train has pseudo-labels .* voc_zs3 rules out"),
        ("voc_zs3", {IGNORED_UNSEEN}, None),
        ("voc_zs3net_2", {IGNORED_UNSEEN}, "voc_zs3net_2 leaves out: .*leave_out_unseen"),
        ("voc_zs3net_2", set(), None),
        ("voc_zs3net_2", {UNSEEN_NAMES}, None),
    ],
)
def test_training_that_a_protocol_rules_out(name, practices, message):
    protocol = Protocol.load(name)
    if message is None:
        protocol.check_training(practices, "data.train")
        return
    with pytest.raises(ValueError, match=message):
        protocol.check_training(practices, "data.train")
    strict = replace(protocol, unseen_names=False)
    with pytest.raises(ValueError, match="asked for by their names, which protocol .* rules out"):
        strict.check_training({UNSEEN_NAMES}, "data.train")
    own = replace(protocol, transductive=True, unseen_pixels="ignored")
    own.check_training({PSEUDO_LABELS, IGNORED_UNSEEN}, "data.train")
