"""The report: numbers as tables, pictures as layers, one page that needs nothing else."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ovseg.report import numbers, page, terminal
from ovseg.report.bars import bars
from ovseg.report.pictures import (
    Picture,
    colorize,
    data_uri,
    load_pictures,
    overlay,
    voc_color,
    voc_picture,
)
from ovseg.vocabulary import Vocabulary


def make_report(vocabulary: Vocabulary) -> dict:
    """A report with numbers that can be told apart."""
    names = [c.key for c in vocabulary.classes]
    one, two = {"seen": 80.14, "unseen": 70.2}, {"seen": 60.3, "mixed": 50.4, "unseen": None}
    one |= {f"{key}_images": value - 1 for key, value in one.items()}
    two |= {"seen_images": 59.3, "mixed_images": 49.4, "unseen_images": None}
    scores = {"seen": 66.6, "unseen": 33.3, "harmonic": 44.4, "background": 91.9}
    per_class = {name: 5.0 * i for i, name in enumerate(names)} | {names[3]: None}
    return {
        "split": vocabulary.split,
        "seen": [vocabulary[i].key for i in vocabulary.seen],
        "unseen": [vocabulary[i].key for i in vocabulary.unseen],
        "grounding": {m: {"one_object": one, "two_objects": two} for m in numbers.METHODS},
        "choice": {"probe": {"two_seen": 88.8, "two_unseen": 55.5}},
        "presence": {"probe": {"one_seen": 97.7}},
        "segmentation": {n: {**scores, "per_class": per_class} for n in numbers.TRAINED_ON},
        "labels_of_stage_3": {"seen": 71.5, "unseen": 41.5},
        "annotator": {"miou": 92.5},
        "counts": {"training": 1000},
        "excluded": {"one_seen": 12.25},
        "seconds": {"stage 1": 100.4, "total": 400.0},
    }


def make_gallery() -> page.Gallery:
    image = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
    labels = np.zeros((64, 64), dtype=np.int64)
    labels[4:30, 4:30], labels[34:60, 34:60], labels[:2] = 3, 10, 255

    def picture(*titles):
        return Picture(image, {t: labels for t in titles}, "a boat <and> a house")

    return page.Gallery(
        {"one": [picture("prediction")] * 2, "none": [Picture(image, {"prediction": labels * 0})]},
        [picture("labels")],
        [picture("truth", "synthetic", "supervised")],
    )


class Collector(HTMLParser):
    """Open tags with their attributes, and whether tags are balanced."""

    VOID = {"meta", "link", "img", "input", "line", "rect"}

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load("clipart", "1")


@pytest.fixture(scope="module")
def html(vocabulary):
    return page.render(make_report(vocabulary), make_gallery(), vocabulary)


def test_page_is_well_formed_and_self_contained(html):
    collector = Collector(html)
    assert collector.open == []
    for _, attributes in collector.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import|<script", html)


def test_page_images_have_alternative_texts_and_decode(html):
    images = [a for tag, a in Collector(html).tags if tag == "img"]
    assert len(images) == 2 * 3 + 1 + 2 + 4  # two with two layers, one with none, pair, truth
    for attributes in images:
        assert attributes["alt"]
        data = base64.b64decode(attributes["src"].split(",")[1])
        assert Image.open(io.BytesIO(data)).size == (64, 64)
    assert any(a["alt"] == "truth: boat, house" for a in images)


def test_page_has_a_toggle_per_mask(html):
    tags = Collector(html).tags
    boxes = [a["id"] for tag, a in tags if tag == "input"]
    labels = [a["for"] for tag, a in tags if tag == "label"]
    assert len(set(boxes)) == 4
    assert boxes == labels
    assert "nothing found" in html


def test_page_escapes_captions_and_shows_numbers(html):
    assert "a boat &lt;and&gt; a house" in html
    assert "<and>" not in html
    for number in ("80.1", "50.4", "79.1", "88.8", "66.6", "92.5", "12.2", "1000", "–"):
        assert number in html


def test_terminal_shows_every_class_of_a_segmenters_test(vocabulary):
    scores = {"seen": 60.04, "unseen": None, "harmonic": float("nan"), "background": 91.9}
    results = {
        "one": {**scores, "per_class": {"car": 12.34, "boat": 56.78}},
        "two": {**scores, "per_class": {"car": 90.12}},
    }
    console = Console(width=80, file=io.StringIO())
    terminal.show_segmenter(results, vocabulary, console)
    rows = [line.strip("│ ").split("│") for line in console.file.getvalue().splitlines()]
    rows = [[cell.strip() for cell in row] for row in rows if len(row) == 3]
    assert rows[0] == ["car", "12.3", "90.1"] and len(rows) == 20 + 4
    assert rows[15] == ["boat (unseen)", "56.8", "–"]  # behind the 15 seen ones
    assert rows[-4:-1] == [["seen", "60.0", "60.0"], ["unseen", "–", "–"], ["harmonic", "–", "–"]]


def test_terminal_shows_every_row(vocabulary):
    console = Console(width=120, file=io.StringIO())
    terminal.show(make_report(vocabulary), console)
    text = console.file.getvalue()
    for word in (
        *numbers.METHODS,
        *numbers.TRAINED_ON,
        "boat, cat",
        "80.1",
        "44.4",
        "88.8",
        "97.7",
    ):
        assert word in text


def test_overlay_outlines_the_mask_but_not_along_the_border():
    mask = np.zeros((5, 6), dtype=bool)
    mask[0:3, 1:4] = True
    layer = overlay(mask, (1, 2, 3))
    expected = np.zeros((5, 6))
    expected[0:3, 1:4] = 255
    expected[0:2, 2] = 120  # neighbours above row 0 lie outside of the image
    assert np.array_equal(layer[..., 3], expected)
    assert (layer[..., :3] == (1, 2, 3)).all()


def test_colorize_paints_classes_and_ignore(vocabulary):
    painted = colorize(np.array([[0, 1, 255]]), vocabulary.palette)
    assert painted.tolist() == [[[0, 0, 0], [230, 25, 75], [224, 224, 192]]]


def test_colours_of_voc():
    known = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert [voc_color(i) for i in range(5)] == known
    assert voc_color(15) == (192, 128, 128) and voc_color(20) == (0, 64, 128)  # person, monitor
    picture = voc_picture(np.array([[15, 255]], np.uint8))
    assert picture.mode == "P" and np.asarray(picture).tolist() == [[15, 255]]
    assert np.asarray(picture.convert("RGB")).tolist() == [[[192, 128, 128], [224, 224, 192]]]


def test_data_uri_is_lossless():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 4)).astype(np.uint8)
    data = base64.b64decode(data_uri(pixels).removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


def test_bars_have_the_length_of_their_value():
    svg = bars({"a": {"x": 50.0, "y": None}, "b": {"x": 100.0, "y": 0.0}}, marked=["y"])
    assert re.findall(r'width="([\d.]+)"', svg) == ["230.0", "460.0", "0.0"]
    assert svg.count("<title>") == 3
    assert re.search(r'class="name unseen"[^>]*>y ○<', svg)
    assert bars({}).startswith("<svg")


def test_pictures_survive_the_disk(tmp_path):
    picture = make_gallery().predictions[0]
    picture.save(tmp_path / "new", "b")
    picture.save(tmp_path / "new", "a")
    first, second = load_pictures(tmp_path / "new")
    assert np.array_equal(first.image, picture.image)
    assert list(first.maps) == ["truth", "synthetic", "supervised"]
    assert np.array_equal(second.maps["truth"], picture.maps["truth"])
    assert first.caption == picture.caption
    assert len(load_pictures(tmp_path / "new", 1)) == 1
    assert load_pictures(tmp_path / "none") == []


def test_write_makes_the_file(tmp_path, vocabulary):
    path = page.write(tmp_path / "r.html", make_report(vocabulary), page.Gallery(), vocabulary)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
