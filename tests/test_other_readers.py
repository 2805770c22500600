"""Other libraries read a dataset by the snippets of docs/data_format.md."""

import re
from pathlib import Path

import numpy as np
import pytest
from test_shards import dataset, open_stream  # noqa: F401 - a fixture

DOCS = Path(__file__).parents[1] / "docs" / "data_format.md"


def read_by(library, folder):
    """Run a snippet on the dataset; return what it names of every sample, in its own order."""
    text = DOCS.read_text(encoding="utf-8")
    snippet = re.search(rf"^`{library}`.*?```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)[1]
    keep = "samples.append({n: globals().get(n) for n in ('image', 'mask', 'facts', 'latent')})"
    scope = {"samples": []}
    exec(compile(f"{snippet.replace('FOLDER', str(folder))}    {keep}\n", str(DOCS), "exec"), scope)
    return scope["samples"]


def compare(read, expected):
    assert len(read) == len(expected)
    for sample, there in zip(read, expected, strict=True):
        assert np.array_equal(sample["image"], there.image)
        assert np.array_equal(sample["mask"], there.mask) and sample["mask"].ndim == 2
        facts = sample["facts"]
        assert facts["index"] == there.request.index and facts["prompt"] == there.request.prompt
        assert facts["names"] == [entity.name for entity in there.request.entities]
        assert facts["found"] == there.found
        assert facts["scores"] == [one.score for one in there.record.facts]


@pytest.fixture
def samples(dataset):  # noqa: F811 - the fixture
    stream = open_stream(dataset)
    return [stream.sample(position) for position in range(len(stream))]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an open file
def test_webdataset(dataset, samples):  # noqa: F811
    compare(read_by("webdataset", dataset), samples[:4])


def test_datasets(dataset, samples, tmp_path, monkeypatch):  # noqa: F811
    config = pytest.importorskip("datasets.config", reason="the extra `test` has datasets")
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path)
    read = read_by("datasets", dataset)
    compare(read, samples)
    for sample, there in zip(read, samples, strict=True):
        assert np.array_equal(sample["latent"].astype(np.float32), there.latent)
