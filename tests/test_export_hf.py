"""ovseg.export.hf: read back by pyarrow, and by `datasets` where it is installed."""

import io
import json

import numpy as np
import pytest
import yaml
from exported import ODD, export, key, part, vocabulary_of, write_samples
from huggingface_hub.errors import HTTPError
from PIL import Image

pytest.importorskip("pyarrow", reason="the export extra is not installed")
import pyarrow.parquet as pq  # noqa: E402

from ovseg.export.hf import card  # noqa: E402
from ovseg.vocabulary import Vocabulary  # noqa: E402

SPLITS = {"train": "train", "val": "validation"}


def write(folder, instances=True, *arguments):
    path = vocabulary_of(folder)
    samples = write_samples(folder / "data", path, instances)
    assert export(folder / "data", folder / "out", "hf", "--vocabulary", path, *arguments) == 0
    return samples, folder / "out"


def decoded(value):
    with Image.open(io.BytesIO(value["bytes"])) as picture:
        return np.array(picture)


def check(row, sample, picture=np.array):
    request = sample.request
    assert row["key"] == key(sample) and row["prompt"] == request.prompt
    assert np.array_equal(picture(row["image"]), sample.image)
    assert np.array_equal(picture(row["mask"]), sample.mask)
    if sample.instances is None:
        assert row["instances"] is None
    else:
        assert np.array_equal(picture(row["instances"]), sample.instances)
    assert row["names"] == ["one", "two"] and row["seed"] == request.seed
    assert row["class_ids"] == [e.class_id for e in request.entities]
    assert row["found"] == [True, True] and row["scores"] == [0.5, 0.25]


@pytest.mark.parametrize("instances", [True, False])
def test_parquet_holds_every_sample(tmp_path, instances):
    samples, out = write(tmp_path, instances)
    for name, split in SPLITS.items():
        table = pq.read_table(out / "data" / f"{split}-00000.parquet")
        wanted = [s for s in samples if part(s) == name]
        for row, sample in zip(table.to_pylist(), wanted, strict=True):
            check(row, sample, decoded)


@pytest.mark.parametrize("instances", [True, False])
def test_load_dataset_reads_pictures_and_splits(tmp_path, instances):
    datasets = pytest.importorskip("datasets", reason="`datasets` is not installed")
    samples, out = write(tmp_path, instances)
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation"}
    for name, split in SPLITS.items():
        features = loaded[split].features
        pictures = [k for k, v in features.items() if isinstance(v, datasets.Image)]
        assert pictures == ["image", "mask", "instances"]
        wanted = [s for s in samples if part(s) == name]
        for row, sample in zip(loaded[split], wanted, strict=True):
            check(row, sample)


def test_files_are_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr("ovseg.export.hf.FILE_BYTES", 8000)  # four samples of 2 to 3 kB
    samples, out = write(tmp_path, True, "--val-share", "0")
    files = sorted((out / "data").iterdir())
    assert [path.name for path in files] == [f"train-{n:05d}.parquet" for n in range(len(files))]
    assert 3 <= len(files) <= 5
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    for row, sample in zip(rows, samples, strict=True):
        check(row, sample, decoded)
    head = yaml.safe_load((out / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]


def test_the_card_says_what_was_made_by_what_but_not_where(tmp_path):
    _, out = write(tmp_path)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "12 images with masks" in text and "/home" not in text
    assert "text-to-image model: `toy`, revision not recorded, licence mit" in text
    assert "masks these are: `mmseg:detector`" in text
    shown = ["potted plant", "déjà: vu", r'a "b" \#c', r"\{d\} \| \<e\>", "- 'f'"]
    for number, (name, words) in enumerate(zip(ODD, shown, strict=True), start=1):
        assert f"- {number} `{name}`: {words}\n" in text


def test_the_card_has_a_licence_and_shows_names_as_they_are(tmp_path):
    folder = tmp_path / "<odd>"
    folder.mkdir()
    path = vocabulary_of(folder, ["a `b`\n<script>", "_x_"])
    path.write_text(path.read_text(encoding="utf-8").replace("name: odd", "name: <b>odd</b>"))
    manifest = {
        "counts": {"samples": 3},
        "config_digest": "0123",
        "backbone": {"model": "me/a`b", "revision": "<i>", "licence": "MIT"},
        "annotator": {"source": "mmseg:detector"},
    }
    text = card(Vocabulary.load(path), manifest, ["train"])
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "mit"
    body = text.split("---\n")[2]
    assert r"# Images and masks, \<b\>odd\</b\>" in body
    assert r"- 1 `a 'b' <script>`: a \`b\` \<script\>" in body and r"- 2 `_x_`: \_x\_" in body
    assert r"`me/a'b`, revision \<i\>, licence MIT" in body
    manifest["annotator"]["images"] = {"class_path": "x"}  # a labelled dataset's
    assert "license: unknown" in card(Vocabulary.load(path), manifest, ["train"])


class Hub:
    """Records what is asked of it."""

    calls: list[tuple] = []
    error: Exception | None = None

    def create_repo(self, repo, **options):
        self.calls.append(("create", repo, options))
        return f"https://hub.test/datasets/{repo}"

    def upload_folder(self, repo_id, folder_path, repo_type):
        if self.error:
            raise self.error
        names = sorted(path.name for path in folder_path.iterdir())
        self.calls.append(("upload", repo_id, names, repo_type))


def test_push_uploads_a_finished_export_to_a_private_repository(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    write(tmp_path, True, "--push-to-hub", "me/clips")
    assert Hub.calls == [
        ("create", "me/clips", {"repo_type": "dataset", "private": True, "exist_ok": True}),
        ("upload", "me/clips", ["README.md", "data", "export.json"], "dataset"),
    ]
    assert "https://hub.test/datasets/me/clips" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["samples"] == {"train": 10, "val": 2}


def test_a_failed_upload_keeps_the_export(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(Hub, "error", HTTPError("no way\nthere"))
    write_samples(tmp_path / "data", "voc")
    arguments = (tmp_path / "data", tmp_path / "out", "hf", "--push-to-hub", "me/clips")
    assert export(*arguments) == 2
    error = capsys.readouterr().err
    assert "ovseg export: cannot upload to me/clips (no way there)" in error
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("ovseg.export.command.write", None)  # not made again
    assert export(*arguments) == 0
