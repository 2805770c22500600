"""The page of a dataset as text, and in a browser: filters, links, toggle, enlarging."""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from ovseg.data.about import about
from ovseg.quality import Facts
from ovseg.report.dataset import Tally
from ovseg.report.dataset_page import (
    Card,
    Report,
    bin_names,
    color_of,
    layer,
    render,
    thumbnail,
)
from ovseg.report.duplicates import near_duplicates

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOSTILE = '</script><img src=x onerror="window.hacked = true">'
SAMPLES = [  # class, score or None if it was not found, verdict
    [("house", 0.9, ""), ("cat & dog", 0.8, "")],
    [("house", 0.4, "score 0.4 < 0.5")],
    [("house", None, ""), ("cat & dog", 0.95, "")],
    [("cat & dog", 0.3, "score 0.3 < 0.5, area 0.001 < 0.01")],
    [(HOSTILE, 0.7, "")],
]
NOT_DRAWN = [[("zebra", 0.6, "")], [("yak", 0.2, "score 0.2 < 0.5")]]


def make_card(number, entities):
    ids = {"house": 1, "cat & dog": 2, "zebra": 3, "yak": 4, HOSTILE: 0}
    return Card(
        title=f"shard-000000.tar {number:08d}",
        prompt=f"a photo of {HOSTILE} & 'more'",
        keys=[key for key, *_ in entities],
        class_ids=[ids[key] for key, *_ in entities],
        facts=[Facts(key, score is not None, score or 0.0, 0.25) for key, score, _ in entities],
        verdict=[why for *_, why in entities],
        image=thumbnail(Image.new("RGB", (8, 8), (10, 200, 30))),
        layer=layer(Image.fromarray(np.eye(8, dtype=np.uint8))),
    )


def make_report():
    cards = [make_card(number, entities) for number, entities in enumerate(SAMPLES)]
    kept, rejected = Tally(), Tally()
    for card in (*cards, *(make_card(9, entities) for entities in NOT_DRAWN)):
        (kept if card.kept else rejected).add(card.keys, card.class_ids, card.facts)
    return Report(
        title=f"set {HOSTILE}",
        about={"model": HOSTILE},
        numbers={
            "kept": 4,
            "rejected": 3,
            "classes": {"house": {"asked": 3, "kept": 1}, HOSTILE: {"asked": 1, "kept": 1}},
            "reasons": {"score < 0.5": 3, "area < 0.01": 1},
        },
        kept=kept,
        rejected=rejected,
        unseen={"house"},
        hashed=3,
        duplicates=near_duplicates(np.array([1, 1, 99], dtype=np.uint64), 5),
        examples=[(cards[0], cards[2], 0)],
        cards=cards,
    )


@pytest.fixture(scope="module")
def page():
    return render(make_report())


@pytest.fixture(scope="module")
def browse(page, tmp_path_factory):
    """Open the page at a fragment, run a script in it, and return what that returns."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    folder = tmp_path_factory.mktemp("browser")

    def run(fragment, script):
        script = (
            f"<script>(async () => {{ const act = async () => {{ {script} }};"
            "const found = document.createElement('pre'); found.id = 'found';"
            "found.textContent = JSON.stringify(await act());"
            "document.body.append(found); })();</script>"
        )
        (folder / "page.html").write_text(page.replace("</body>", f"{script}</body>"))
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/user"]
        options += ["--virtual-time-budget=5000", "--dump-dom"]
        address = (folder / "page.html").as_uri() + fragment
        done = subprocess.run(
            [browser, *options, address], capture_output=True, text=True, timeout=300
        )
        found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr
        return json.loads(html.unescape(found[1]))

    return run


SHOWN = "[...document.querySelectorAll('#cards > .card')].flatMap((c, i) => c.hidden ? [] : [i])"
WAIT = "await new Promise((done) => setTimeout(done, 100));"


FILTERS = {
    "#gallery": [0, 1, 2, 3, 4],
    "#class=house": [0, 1, 2],
    "#class=house&verdict=kept": [0, 2],
    "#class=cat+%26+dog&least=0.85": [2],
    "#class=house&least=0.1": [0, 1],
    "#verdict=rejected": [1, 3],
    "#verdict=area+%3C+0.01": [3],
    "#most=0.35": [3],
    "#class=cat+%26+dog&verdict=kept&least=0.99": [],
    "#class=zebra": [],
    "#class=nobody+knows&verdict=kept": [],
    "#verdict=lost": [],
    "#": [0, 1, 2, 3, 4],
}


def test_a_fragment_sets_the_filters(browse):
    count = "document.getElementById('count').textContent"
    script = f"""
    const seen = [];
    for (const fragment of {json.dumps(list(FILTERS))}) {{
      location.hash = fragment; {WAIT}
      seen.push([{SHOWN}, {count}]);
    }}
    return seen;
    """
    expected = [[shown, f"{len(shown)} of 5 shown"] for shown in FILTERS.values()]
    assert browse("", script) == expected
    assert browse("#class=house&verdict=kept", f"return {SHOWN};") == [0, 2]  # from the start


def test_what_was_not_drawn_is_said_in_words(browse):
    script = f"""
    const field = document.getElementById("filters").elements["class"], steps = [];
    const offered = [...field.options].map((option) => option.value);
    const look = () => steps.push([{SHOWN}.length, document.getElementById("absent").textContent]);
    document.querySelector("#classes a[href='#class=zebra']").click(); {WAIT} look();
    for (const fragment of ["#class=house", "#class=%3Cb%3E&verdict=lost", "#"]) {{
      location.hash = fragment; {WAIT} look();
    }}
    return [offered, steps];
    """
    offered, steps = browse("", script)
    assert offered == ["", *sorted(["house", "cat & dog", "zebra", "yak", HOSTILE])]
    assert steps == [
        [0, "No sample of the class “zebra” was drawn."],
        [3, ""],
        [0, "No sample of the class “<b>” was drawn. No sample of the verdict “lost” was drawn."],
        [5, ""],
    ]
    assert browse("#class=zebra", f"return {SHOWN};") == []  # from the start


def test_choosing_clicking_and_resetting(browse):
    script = f"""
    const form = document.getElementById("filters"), steps = [];
    const choose = (name, value) => {{
      form.elements[name].value = value;
      form.elements[name].dispatchEvent(new Event("input", {{bubbles: true}}));
      steps.push([{SHOWN}, location.hash]);
    }};
    choose("verdict", "kept");
    choose("class", "cat & dog");
    form.querySelector("button").click(); {WAIT}
    steps.push([{SHOWN}, location.hash]);
    document.querySelector("#classes a[href='#class=house']").click(); {WAIT}
    steps.push([{SHOWN}, location.hash]);
    return steps;
    """
    assert browse("", script) == [
        [[0, 2, 4], "#verdict=kept"],
        [[0, 2], "#class=cat+%26+dog&verdict=kept"],
        [[0, 1, 2, 3, 4], ""],
        [[0, 1, 2], "#class=house"],
    ]


def test_a_click_enlarges_and_labels_can_be_hidden(browse):
    script = """
    const dialog = document.getElementById("large"), seen = (what) => what.offsetWidth > 0;
    const before = [dialog.open, seen(document.querySelector("#cards .facts"))];
    document.querySelectorAll("#cards .card > button")[1].click();
    const card = dialog.querySelector(".card");
    const facts = card.querySelectorAll(".facts tbody tr"), layer = card.querySelector("img + img");
    const open = [dialog.open, seen(facts[0]), facts.length, seen(layer)];
    document.getElementById("overlay").click();
    const plain = seen(layer);
    dialog.querySelector("form button").click();
    return [before, open, plain, dialog.open, window.hacked === undefined];
    """
    assert browse("", script) == [[False, False], [True, True, 1, True], False, False, True]


def test_what_was_made_up_by_others_is_escaped(page):
    assert "<img src=x" not in page and page.count("<script") == page.count("</script>") == 2
    text = re.search(r'<script type="application/json" id="samples">(.*?)</script>', page)[1]
    samples = json.loads(text)
    assert "<" not in text and samples[4]["entities"] == [[HOSTILE, 0.7]]
    assert samples[3]["verdicts"] == ["rejected", "area < 0.01", "score < 0.5"]
    assert samples[2]["entities"] == [["house", None], ["cat & dog", 0.95]]


def test_nothing_is_loaded_from_elsewhere(page):
    for value in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert value.startswith(("data:", "#"))
    assert not re.search(r"https?://|url\(|@import", page)
    assert "default-src 'none'" in page


def test_layer_paints_each_class_in_its_colour():
    labels = np.zeros((9, 9), dtype=np.uint8)
    labels[1:4, 1:4], labels[5:8, 5:8], labels[0, 8] = 1, 2, 255
    data = base64.b64decode(layer(Image.fromarray(labels)).split(",")[1])
    painted = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    for class_id in (1, 2, 255):
        mask = labels == class_id
        assert (painted[mask][:, :3] == color_of(class_id)).all() and painted[mask][:, 3].all()
    assert not painted[labels == 0][:, 3].any()
    assert len({color_of(class_id) for class_id in range(1, 255)}) == 254


def test_large_pictures_become_small():
    for make, mode in ((thumbnail, "RGB"), (layer, "L")):
        data = base64.b64decode(make(Image.new(mode, (1024, 512), 1)).split(",")[1])
        assert Image.open(io.BytesIO(data)).size == (256, 128)


def test_bins_have_names():
    assert bin_names(["1", "2", "5"]) == ["< 1", "1–2", "2–5", "≥ 5"]


def test_an_empty_dataset_has_a_page():
    empty = make_report()
    empty.kept, empty.rejected, empty.cards, empty.examples = Tally(), Tally(), [], []
    empty.numbers = {"kept": 0, "rejected": 0, "classes": {}, "reasons": {}}
    empty.duplicates, empty.hashed = near_duplicates(np.zeros(0, np.uint64), 5), 0
    assert "0 of 0 samples kept." in render(empty)


def test_about_leaves_out_what_is_unknown():
    facts = {
        "format": 2,
        "backbone": {"model": "m", "revision": None, "steps": 8},
        "annotator": {"source": "s", "trained_on": [1], "digest": "d"},
        "vocabulary": {"name": "v", "split": "1", "num_classes": 3, "digest": "w"},
        "prompts": {"class_path": "P", "objects": {"1": "1/4"}, "templates": ["a", "b"]},
        "filter": {"class_path": "F", "min_area": 0.1, "max_area": None, "no_border": False},
        "requested_classes": [1, 2],
    }
    assert about(facts, {1: "house"}, (1, 3)) == {
        "state": "not complete: 1 of 3 shards",
        "model": "m",
        "sampled with": "steps 8",
        "annotator": "s",
        "masks seen of": "house",
        "classes asked for": "house, class 2",
        "vocabulary": "v, split 1, classes 2",
        "prompts": "P, objects 1: 1/4, templates a; b",
        "filter": "F, min area 0.1",
        "digests": "vocabulary w, annotator d",
        "format": "2",
    }
