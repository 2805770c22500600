"""ovseg.data.card: what a dataset says of itself to people and to the Hub."""

import copy
import gc
import json

import numpy as np
import pytest
import yaml
from acme.backbone import ToyBackbone
from huggingface_hub import DatasetCard
from toy_data import data_module, live_stream, write_dataset

from ovseg.data.card import make_card, plain, size_category, without_folders
from ovseg.data.shards import ShardStream
from ovseg.quality import QualityFilter
from ovseg.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Ten samples, some of which a filter has rejected."""
    judge = QualityFilter(must_be_found=True)
    data = data_module(
        backbone=ToyBackbone(forget=0.2), predict={"data": live_stream(10, filter=judge)}
    )
    return write_dataset(tmp_path_factory.mktemp("card") / "set", data)


@pytest.fixture
def manifest(dataset):
    return json.loads((dataset / "dataset.json").read_text())


def rows(text):
    """Return the cells of every line of a table by its first cell."""
    lines = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in lines if rest}


def test_the_card_says_what_dataset_json_does(dataset, manifest):
    text = (dataset / "card.md").read_text()
    table = rows(text)
    assert table["model"] == ["toy"] and table["licence"] == ["CC0-1.0"]
    assert "guidance scale 1.0" in table["sampled with"][0]
    assert "seed 0" in table["stream"][0] and "must be found True" in table["filter"][0]
    assert manifest["config_digest"] in table["digests"][0]
    assert manifest["environment"]["versions"]["torch"] in table["made on"][0]
    for key, counts in {**manifest["counts"]["classes"], **manifest["counts"]["pairs"]}.items():
        assert table[key] == [str(counts["prompted"]), str(counts["found"])]
    for name, facts in manifest["shards"].items():
        assert table[name] == [str(facts[key]) for key in ("samples", "bytes", "sha256")]
    rejected = manifest["yield"]["rejected"]
    assert rejected and f"{rejected} images more were made and rejected" in text


def test_the_front_matter_is_what_the_hub_reads(dataset):
    head = DatasetCard.load(dataset / "card.md").data.to_dict()
    assert head["license"] == "cc0-1.0" and head["task_categories"] == ["image-segmentation"]
    assert head["size_categories"] == "n<1K" and "ovseg" in head["tags"]
    assert head["configs"] == [{"config_name": "default", "data_files": "shard-*.tar"}]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
def test_its_code_reads_the_dataset(dataset, manifest):
    text = (dataset / "card.md").read_text()
    ours, theirs = (part.split("```")[0] for part in text.split("```python\n")[1:])
    names: dict = {}
    exec(ours.replace("FOLDER", str(dataset)), names)
    assert torch_equal(names["batch"].images, read(dataset)[[0, 1]].images)
    exec(theirs.replace("FOLDER", str(dataset)), names)
    last = read(dataset).sample(manifest["counts"]["samples"] - 1)
    assert np.array_equal(np.array(names["image"]), last.image)
    assert np.array_equal(np.array(names["mask"]), last.mask)
    assert names["facts"]["prompt"] == last.request.prompt
    names.clear()
    gc.collect()


def read(dataset):
    stream = ShardStream(str(dataset))
    stream.bind(Vocabulary.load("clipart"))
    return stream


def torch_equal(one, other):
    return one.shape == other.shape and bool((one == other).all())


def test_what_others_wrote_is_shown_as_it_is(manifest):
    manifest["vocabulary"]["name"] = 'a "b" | <c>'
    manifest["counts"]["classes"] = {"*x*|[y](z)\nw": {"prompted": 2, "found": 1}}
    manifest["backbone"]["model"] = "/home/me/models/my_model"
    manifest["annotator"]["source"] = "mmseg:/home/me/detector"
    text = make_card(manifest)
    assert r"| \*x\*\|\[y\]\(z\) w | 2 | 1 |" in text
    assert "/home" not in text and r"| model | my\_model |" in text
    assert "| mmseg:detector |" in text
    assert r'# Images and masks, a "b" \| \<c\>' in text
    assert yaml.safe_load(text.split("---")[1])["pretty_name"] == 'Images and masks, a "b" | <c>'
    assert r'Vocabulary.load("a \"b\" | <c>", "1")' in text
    assert plain(r"\`a`") == r"\\\`a\`"


@pytest.mark.parametrize(
    ("licence", "head"),
    [
        (None, {"license": "unknown"}),
        ("MIT", {"license": "mit"}),
        (
            "other (FLUX.1 dev, non-commercial)",
            {"license": "other", "license_name": "flux.1-dev-non-commercial"},
        ),
    ],
)
def test_licences(manifest, licence, head):
    manifest["backbone"]["licence"] = licence
    found = yaml.safe_load(make_card(manifest).split("---")[1])
    assert {key: found[key] for key in found if key.startswith("license")} == head


def test_photographs_have_no_licence_of_the_model(manifest):
    photographs = copy.deepcopy(manifest)
    photographs["annotator"]["images"] = {"class_path": "x"}
    text = make_card(photographs)
    assert "license: unknown" in text and "text-to-image model made" not in text


def test_sizes():
    numbers = (999, 1000, 9999, 10_000, 250_000, 3_000_000)
    expected = ["n<1K", "1K<n<10K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M"]
    assert [size_category(n) for n in numbers] == expected


@pytest.mark.parametrize(
    "source, said",
    [
        ("mmseg:/home/me/runs/segmenter", "mmseg:segmenter"),
        ("mmseg:~/segmenter/", "mmseg:segmenter"),
        ("acme.grounder.Nearness", "acme.grounder.Nearness"),
        (
            "agreement of transformers:acme/coco and transformers:dino + transformers:/a/b/sam",
            "agreement of transformers:acme/coco and transformers:dino + transformers:sam",
        ),
        ("mmseg:/a/coco, small regions given away", "mmseg:coco, small regions given away"),
    ],
)
def test_sources_lose_their_folders_alone(source, said):
    found = without_folders({"backbone": None, "annotator": {"source": source}})
    assert found["annotator"]["source"] == said
