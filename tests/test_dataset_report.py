"""`ovseg report` of datasets in every state, against plain loops over their tars."""

import errno
import io
import json
import tarfile
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from acme.backbone import ToyBackbone
from toy_data import contents, data_module, live_stream, write_dataset

from ovseg.__main__ import main
from ovseg.dataset_report import report_of
from ovseg.quality import QualityFilter

HOSTILE = "<script>alert(\"1\")</script> & '{objects}'"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Forty samples of which some were rejected, and kept apart."""
    stream = live_stream(40, filter=QualityFilter(min_area=0.25, must_be_found=True))
    data = data_module(backbone=ToyBackbone(forget=0.2), predict={"data": stream})
    return write_dataset(tmp_path_factory.mktemp("set") / "toys", data, rejected="apart")


@pytest.fixture(scope="module")
def report(dataset):
    return report_of(dataset, samples=300, seed=0, hashes=20_000)


def members(folder, extension):
    """Return ``{path in the folder and key: bytes}`` of one member of every sample."""
    found = {}
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                if kind == extension:
                    found[f"{path.relative_to(folder)} {key}"] = tar.extractfile(member).read()
    return found


def stored(folder, kept):
    """Return the JSON of the samples that were kept, or of those that were not."""
    facts = [json.loads(data) for data in members(folder, "json").values()]
    return [one for one in facts if kept is not any(one["verdict"])]


def keys_of(folder):
    return json.loads((folder / "dataset.json").read_text())["vocabulary"]["keys"]


@pytest.mark.parametrize("kept", [True, False])
def test_numbers_of_classes_are_those_of_a_plain_loop(dataset, report, kept):
    keys, facts = keys_of(dataset), stored(dataset, kept)
    tally = report.kept if kept else report.rejected
    assert tally.samples == len(facts) > 5
    rows = [
        (keys[class_id], *row)
        for one in facts
        for class_id, *row in zip(
            one["class_ids"], one["found"], one["scores"], one["area"], strict=True
        )
    ]
    assert tally.classes.keys() == {key for key, *_ in rows}
    for key, numbers in tally.classes.items():
        mine = [row for row in rows if row[0] == key]
        found = [(score, area) for _, there, score, area in mine if there]
        assert numbers.images == sum(key in [keys[i] for i in f["class_ids"]] for f in facts)
        assert numbers.found_share == pytest.approx(len(found) / len(mine))
        scores, areas = [score for score, _ in found], [area for _, area in found]
        assert numbers.mean_score == (pytest.approx(np.mean(scores)) if scores else None)
        assert numbers.mean_area == (pytest.approx(np.mean(areas)) if areas else None)
        bounds = [-1, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 2]
        bins = zip(bounds, bounds[1:], strict=False)
        assert numbers.areas == [sum(low <= a < high for a in areas) for low, high in bins]
    pairs = Counter(
        tuple(sorted(keys[i] for i in one["class_ids"]))
        for one in facts
        if len(one["class_ids"]) == 2
    )
    assert +tally.pairs == pairs


def test_yield_is_that_of_the_manifest(dataset, report):
    manifest = json.loads((dataset / "dataset.json").read_text())
    assert report.numbers == manifest["yield"]
    assert report.numbers["rejected"] == len(stored(dataset, False))
    assert report.about["filter"].endswith("QualityFilter, min area 0.25, must be found True")
    assert report.about["state"] == "complete"
    assert manifest["config_digest"] in report.about["digests"]


def test_cards_show_every_image_once_and_what_is_wrong(dataset, report):
    facts = {key: json.loads(data) for key, data in members(dataset, "json").items()}
    assert sorted(card.title for card in report.cards) == sorted(facts)
    for card in report.cards:
        assert card.prompt == facts[card.title]["prompt"]
        assert card.verdict == facts[card.title]["verdict"]
        assert card.kept is not card.title.startswith("rejected")


def test_samples_are_drawn_by_the_seed(dataset):
    def titles(seed):
        cards = report_of(dataset, samples=4, seed=seed, hashes=0).cards
        return [card.title for card in cards], sum(card.kept for card in cards)

    assert titles(1) == titles(1) != titles(2)
    assert titles(1)[1] == 4 and len(titles(1)[0]) == 8  # four kept and four rejected ones


def test_page_is_written_whole(dataset, tmp_path, capsys):
    before = contents(dataset)
    out = tmp_path / "new" / "page.html"
    assert main(["report", str(dataset), "--out", str(out)]) == 0
    assert out.read_text().endswith("</html>") and list(out.parent.iterdir()) == [out]
    assert contents(dataset) == before
    assert main(["report", str(dataset), "--samples", "3", "--hashes", "5"]) == 0
    page = (dataset / "report.html").read_text()
    assert "5 of" not in page and "5 were drawn" in page
    (dataset / "report.html").unlink()


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(
    dataset, tmp_path, monkeypatch, capsys
):
    def line(out):
        assert main(["report", str(dataset), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"ovseg report: cannot write {out} (") and error.count("\n") == 1
        assert error.endswith("): give another --out\n")
        return error

    monkeypatch.setattr("ovseg.dataset_report.report_of", None)
    (tmp_path / "file").touch()
    assert "what is there is no file" in line(tmp_path)
    assert "what is there is no file" in line("/dev/null")
    assert "File name too long" in line(tmp_path / ("x" * 300))
    assert "File name too long" in line(tmp_path / "new" / ("x" * 252))  # its temporary's
    assert f"there is no folder {tmp_path / 'a'}" in line(tmp_path / "a" / "b" / "page.html")
    assert f"there is no folder {tmp_path / 'file'}" in line(tmp_path / "file" / "page.html")
    assert "there is no folder /not-there" in line("/not-there/page.html")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert f"you may not write in {tmp_path}" in line(tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_nothing_of_a_page(dataset, tmp_path, monkeypatch, capsys):
    def full(one, other):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert main(["report", str(dataset), "--out", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "(No space left on device): give another --out" in error
    assert list(tmp_path.iterdir()) == []


class Texts(HTMLParser):
    """All text by the tag that it stands in, and how many scripts there are."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.open = Counter(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.open = tag
        self.tags[tag] += 1
        self.texts.extend((f"{tag}.{name}", value) for name, value in attributes)

    def handle_data(self, data):
        self.texts.append((self.open, data))


def test_prompts_and_names_of_folders_stay_text(tmp_path):
    stream = live_stream(8)
    stream.prompts.templates = [HOSTILE]
    data = data_module(backbone=ToyBackbone(), predict={"data": stream})
    folder = write_dataset(tmp_path / "<u>&amp;'\"<!--", data)
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    parsed = Texts(page)
    assert parsed.tags["script"] == 2 and parsed.tags["u"] == 0  # the page's own
    assert ("h1", folder.name) in parsed.texts
    shown = [text for tag, text in parsed.texts if tag == "small" and "alert" in text]
    assert len(shown) == 8 and all(text.startswith("<script>alert(") for text in shown)
    (samples,) = [text for tag, text in parsed.texts if tag == "script" and text.startswith("[")]
    assert len(json.loads(samples)) == 8


def test_rejected_samples_without_images_are_counted_but_not_shown(dataset, report, tmp_path):
    stream = live_stream(40, filter=QualityFilter(min_area=0.25, must_be_found=True))
    data = data_module(backbone=ToyBackbone(forget=0.2), predict={"data": stream})
    folder = write_dataset(tmp_path, data, rejected="drop")
    dropped = report_of(folder, samples=300, seed=0, hashes=0)
    assert dropped.rejected.scores == report.rejected.scores
    assert len(dropped.cards) == dropped.kept.samples
    for path in (folder / "rejected").iterdir():
        path.unlink()
    assert report_of(folder, samples=1, seed=0, hashes=0).numbers == report.numbers


def test_one_that_is_not_complete(dataset, tmp_path):
    folder = write_dataset(tmp_path / "begun")
    (folder / "dataset.json").unlink()
    (folder / "shard-000001.tar").unlink()
    begun = report_of(folder, samples=300, seed=0, hashes=300)
    assert begun.about["state"] == "not complete: 2 of 3 shards"
    assert begun.kept.samples == begun.numbers["kept"] == 6  # four and two


def to_format_1(folder):
    """Take away what a dataset of format 1 does not have."""
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["format"] = 1
    for key in ("yield", "rejected_shards", "filter", "rejected", "quota", "limit"):
        del manifest[key]
    del manifest["vocabulary"]["keys"]
    for name, numbers in manifest["shards"].items():
        buffer = io.BytesIO()
        with tarfile.open(folder / name) as old, tarfile.open(fileobj=buffer, mode="w") as new:
            for member in old:
                data = old.extractfile(member).read()
                if member.name.endswith(".json"):
                    facts = json.loads(data)
                    for key in ("area", "components", "uncertain", "border", "agreement", "clip"):
                        del facts[key]
                    del facts["verdict"]
                    data = json.dumps(facts).encode()
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
        (folder / name).write_bytes(buffer.getvalue())
        numbers["bytes"] = len(buffer.getvalue())
    (folder / "dataset.json").write_text(json.dumps(manifest))


def test_an_old_one(tmp_path):
    folder = write_dataset(tmp_path / "old")
    keys, wanted = keys_of(folder), report_of(folder, 300, 0, 300)
    to_format_1(folder)
    old = report_of(folder, 300, 0, 300)
    assert old.kept.samples == old.numbers["kept"] == 10 and set(old.kept.classes) <= set(keys)
    assert old.kept.scores == wanted.kept.scores and old.duplicates == wanted.duplicates
    assert {numbers.mean_area for numbers in old.kept.classes.values()} == {None}
    assert main(["report", str(folder)]) == 0
    assert "Areas are not stored" in (folder / "report.html").read_text()


def test_errors_are_one_line(dataset, tmp_path, capsys):
    def line(*arguments):
        assert main(["report", *map(str, arguments)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("ovseg report: ")
        return error

    assert "no dataset.json, request.json or quickstart.json" in line(tmp_path)
    assert "--samples must be >= 0, got -1" in line(dataset, "--samples", "-1")
    folder = write_dataset(tmp_path / "broken")
    path = folder / "shard-000002.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        place = next(m.offset_data for m in tar if m.name.endswith("image.png"))
    data[place : place + 40] = bytes(40)
    path.write_bytes(data)
    assert "a picture of" in line(folder) and not (folder / "report.html").exists()
    for path in folder.glob("shard-*"):
        path.unlink()
    assert "holds no shards" in line(folder)
    (folder / "dataset.json").unlink()
    assert "has no finished shard yet" in line(folder)
