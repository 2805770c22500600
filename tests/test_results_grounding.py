"""The table of a grounder's test."""

import io
import math

import pytest
from rich.console import Console

from ovseg.report.terminal import show_grounder
from ovseg.results_grounding import PublishedGrounding, facts, published, rows, table
from ovseg.vocabulary import Vocabulary

COLUMNS = ("one_seen", "one_unseen", "two_seen", "two_mixed", "two_unseen")
OTHER = PublishedGrounding(
    method="A", vocabulary="voc", split="2", columns={"two_seen": 60.0}, source="P"
)


def scores(base: float, **more) -> dict:
    control = {"miou": base - 10, "miou_images": base - 20, "choice": None}
    own = {"miou": base, "miou_images": base - 1, "choice": None, "images": 7, "excluded": 0.125}
    return {**own, "foreground": control, **more}


RESULTS = {
    "one_seen": scores(90.0),
    "two_seen": scores(50.0, swapped={"miou": 5.0, "miou_images": 4.0}, presence=88.8, choice=66.6),
}


def test_rows_are_others_ours_and_the_controls_that_were_made():
    assert list(rows(RESULTS, "Mine", "miou_images", [OTHER])) == [
        ("A, split 2", "published", [None, 60.0]),
        ("Mine", "this test", [89.0, 49.0]),
        ("swapped", "control", [None, 4.0]),
        ("foreground", "control", [70.0, 30.0]),
    ]
    assert [values for _, _, values in facts(RESULTS)] == [[None, 66.6], [None, 88.8], [12.5, 12.5]]


def test_the_papers_rows_stand_beside_its_vocabulary_and_split():
    first = {row.label: row for row in published(Vocabulary.load("voc", "1"), {})}
    assert list(first) == [
        "DAAM (no training), mean of splits",
        "Li et al., mean of splits",
        "Li et al., split 1",
    ]
    values = [row.columns[c] for row in first.values() for c in COLUMNS]
    assert values[:5] == [64.8, 62.9, 48.2, 49.2, 51.0]
    assert values[5:10] == [90.3, 83.1, 79.1, 67.9, 55.7]
    assert values[10:] == [90.2, 83.2, 78.9, 66.1, 57.9]
    assert len(published(Vocabulary.load("voc", "2"), {})) == 2
    coco = published(Vocabulary.load("coco", "65_15"), {})
    assert [row.columns["two_unseen"] for row in coco] == [40.8, 44.4]
    assert published(Vocabulary.load("clipart"), {}) == []


def test_the_table_in_markdown():
    text = table(RESULTS, "Mine", Vocabulary.load("voc", "1"))
    assert text.startswith(
        "# Grounding, voc, split 1\n\nmIoU in percent.\n\n## Mean over classes\n"
    )
    head = "| method |  | one seen | two seen |\n| --- | --- | --- | --- |\n"
    assert text.count(head) == 3
    assert (
        "| Li et al., split 1 | published | 90.2 | 78.9 |\n| **Mine** | this test | 90.0 |" in text
    )
    assert "| swapped | control | – | 5.0 |\n" in text
    assert "| left out, % | this test | 12.5 | 12.5 |\n" in text
    assert "| images scored | this test | 7 | 7 |\n" in text
    assert "Published figures: Li et al., ICCV 2023, Table 1; Li et al., ICCV 2023, abl" in text
    assert "ublished" not in table(RESULTS, "Mine", Vocabulary.load("clipart"))


@pytest.mark.parametrize("missing", [None, math.nan])
def test_the_terminal_shows_the_same(missing):
    console = Console(width=100, file=io.StringIO())
    results = {**RESULTS, "none": scores(10.0, miou=missing)}
    show_grounder(results, "Mine", Vocabulary.load("voc", "1"), console)
    lines = console.file.getvalue().splitlines()
    cells = [[c.strip() for c in line.strip("│ ").split("│")] for line in lines]
    assert ["Mine", "90.0", "50.0", "–"] in cells
    assert ["Li et al., split 1", "90.2", "78.9", "–"] in cells
    assert ["right object, %", "–", "66.6", "–"] in cells


def test_a_bound_says_so_and_nobody_stands_beside_it():
    words, console = Vocabulary.load("voc", "1"), Console(width=100, file=io.StringIO())
    learnt = {name: {**s, "unseen_masks": ["sheep", "sofa"]} for name, s in RESULTS.items()}
    remark = "Trained with masks of sheep, sofa: a bound, no zero-shot result."
    text = table(learnt, "Mine", words)
    assert text.startswith(f"# Grounding, voc, split 1\n\nmIoU in percent. {remark}\n\n## Mean")
    show_grounder(learnt, "Mine", words, console)
    assert remark in console.file.getvalue()
    assert "ublished" not in text + console.file.getvalue()
    own = {name: {**s, "unseen_masks": []} for name, s in RESULTS.items()}
    assert table(own, "Mine", words) == table(RESULTS, "Mine", words)
