"""Datasets behind a web server of this process: fetched, checked, kept."""

import functools
import hashlib
import json
import multiprocessing
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
import torch
from huggingface_hub import HfFileSystem
from test_datamodule import Recorder
from test_shards import open_stream
from toy_data import contents, data_module, live_stream, quiet_trainer, write_dataset

from ovseg.__main__ import main
from ovseg.data import fetch
from ovseg.data.fetch import is_url
from ovseg.data.found import FoundStream
from ovseg.data.shards import ShardStream
from ovseg.data.sources import LocalSource, RemoteSource, source_of
from ovseg.vocabulary import Vocabulary

SECOND = "shard-000001.tar"


class Server(ThreadingHTTPServer):
    """Serves a folder to who knows its signature; ``cut[name]`` answers end halfway."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.cut, self.asked, self.signature = {}, [], ""
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    def copyfile(self, source, outputfile):
        data, name = source.read(), self.path.partition("?")[0].rpartition("/")[2]
        self.server.asked.append(name)
        if self.server.cut.get(name, 0) > 0:
            self.server.cut[name] -= 1
            data = data[: len(data) // 2]
        outputfile.write(data)

    def send_head(self):
        if self.path.partition("?")[2] != self.server.signature:
            return self.send_error(403)
        return super().send_head()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def server(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "WAITS", (0.01, 0.01))
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    folder = tmp_path / "served" / "toy"
    folder.mkdir(parents=True)
    for name, data in contents(dataset).items():
        (folder / name).write_bytes(data)
    served = Server(folder.parent)
    thread = threading.Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def kept(tmp_path):
    """Return what is in the cache, by name."""
    return {p.name: p for p in (tmp_path / "cache").rglob("*.*") if not p.name.startswith(".")}


def test_shards_are_fetched_when_they_are_needed_and_kept(dataset, server, tmp_path):
    stream, local = open_stream(f"{server.url}/toy/", **cache(tmp_path)), open_stream(dataset)
    assert len(stream) == 10 and stream.taught_classes() == local.taught_classes()
    assert server.asked == ["dataset.json"]
    assert torch.equal(stream[[5]].images, local[[5]].images)
    assert server.asked == ["dataset.json", SECOND]
    assert set(kept(tmp_path)) == {"dataset.json", SECOND}
    batch, expected = stream[[9, 0, 4, 7]], local[[9, 0, 4, 7]]
    assert batch.requests == expected.requests and torch.equal(batch.latents, expected.latents)
    again = open_stream(f"{server.url}/toy", **cache(tmp_path))
    assert torch.equal(again[[0, 5, 9]].labels, local[[0, 5, 9]].labels)
    assert sorted(server.asked[2:]) == ["dataset.json", "shard-000000.tar", "shard-000002.tar"]
    # what was fetched is a dataset like any other
    folder = kept(tmp_path)[SECOND].parent
    assert len(open_stream(folder)) == 10
    for name, path in kept(tmp_path).items():
        assert path.read_bytes() == (dataset / name).read_bytes()


def cache(tmp_path):
    return {"cache_dir": str(tmp_path / "cache")}


def test_training_from_a_url_with_workers(server, dataset, tmp_path):
    seen = []
    for path in (f"{server.url}/toy", str(dataset)):
        data = data_module(3, train=ShardStream(path, **cache(tmp_path)), num_workers=2)
        module = Recorder()
        quiet_trainer(tmp_path, max_epochs=2).fit(module, data)
        seen.append([batch for _, _, batch in module.seen])
    assert len(seen[0]) == 6
    for remote, local in zip(*seen, strict=True):
        assert remote.requests == local.requests and torch.equal(remote.images, local.images)
    assert sorted(server.asked) == sorted(["dataset.json", *kept(tmp_path)][1:])


def fetch_all(url, folder, _):
    source = RemoteSource(url, folder)
    return [source.shard(name).stat().st_size for name in source.manifest["shards"]]


def test_processes_fetch_a_shard_once(server, dataset, tmp_path):
    call = functools.partial(fetch_all, f"{server.url}/toy", str(tmp_path / "cache"))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        sizes = pool.map(call, range(4), chunksize=1)
    facts = json.loads((dataset / "dataset.json").read_text())["shards"]
    assert sizes == [[one["bytes"] for one in facts.values()]] * 4
    assert sorted(n for n in server.asked if n != "dataset.json") == sorted(facts)


def test_what_ends_halfway_is_asked_for_again(server, dataset, tmp_path):
    server.cut = {SECOND: 1, "dataset.json": 1}
    stream = open_stream(f"{server.url}/toy", **cache(tmp_path))
    assert torch.equal(stream[[5]].images, open_stream(dataset)[[5]].images)
    assert server.asked == ["dataset.json"] * 2 + [SECOND] * 2


def test_what_always_ends_halfway_is_said(server, tmp_path):
    server.cut = {SECOND: 99}
    stream = open_stream(f"{server.url}/toy", **cache(tmp_path))
    with pytest.raises(OSError) as caught:
        stream[[5]]
    line = str(caught.value)
    assert line.startswith(f"cannot fetch {server.url}/toy/{SECOND} in 3 attempts: ")
    assert "\n" not in line and "payload" in line
    assert server.asked[1:] == [SECOND] * 3
    assert set(kept(tmp_path)) == {"dataset.json"}
    assert len(stream[[0]]) == 1


def test_other_bytes_than_the_recorded_ones_are_refused(server, tmp_path):
    path = tmp_path / "served/toy" / SECOND
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    stream = open_stream(f"{server.url}/toy", **cache(tmp_path))
    with pytest.raises(OSError, match=f"{SECOND} in 3 attempts: its SHA-256 is {digest}, dataset"):
        stream[[5]]
    path.write_bytes(data[:5000])
    with pytest.raises(OSError, match="it has 5000 bytes, dataset.json says"):
        stream[[5]]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no {server.url}/toy/{SECOND}"):
        stream[[5]]
    assert set(kept(tmp_path)) == {"dataset.json"}


def test_a_changed_dataset_is_another_one(server, tmp_path):
    first = open_stream(f"{server.url}/toy", **cache(tmp_path))
    first[[0]]
    data = data_module(predict={"data": live_stream(seed=7)})
    other = write_dataset(tmp_path / "other", data)
    for name, data in contents(other).items():
        (tmp_path / "served/toy" / name).write_bytes(data)
    second = open_stream(f"{server.url}/toy", **cache(tmp_path))
    assert torch.equal(second[[0, 9]].images, open_stream(other)[[0, 9]].images)
    assert first.source.folder != second.source.folder


def test_a_cut_file_of_the_cache_is_fetched_again(server, dataset, tmp_path):
    open_stream(f"{server.url}/toy", **cache(tmp_path))[[5]]
    path = kept(tmp_path)[SECOND]
    path.write_bytes(path.read_bytes()[:3000])
    stream = open_stream(f"{server.url}/toy", **cache(tmp_path))
    assert torch.equal(stream[[5]].images, open_stream(dataset)[[5]].images)


def test_what_was_found_is_known_before_a_shard_is_fetched(server, dataset, tmp_path):
    streams = [FoundStream(f"{server.url}/toy", **cache(tmp_path)), FoundStream(str(dataset))]
    for stream in streams:
        stream.bind(Vocabulary.load("clipart", "1"))
    assert len(streams[0]) == len(streams[1]) and server.asked == ["dataset.json"]
    assert streams[0][[0]].requests == streams[1][[0]].requests
    assert server.asked == ["dataset.json", "shard-000000.tar"]


def test_a_signature_goes_with_every_file_and_is_not_told(server, dataset, tmp_path):
    server.signature = "sv=1&sig=a%2Bb%2F%3D"
    stream = open_stream(f"{server.url}/toy/?{server.signature}", **cache(tmp_path))
    expected = open_stream(dataset)[[5, 0]]
    assert torch.equal(stream[[5, 0]].images, expected.images)
    assert str(stream.source) == f"{server.url}/toy"
    server.signature = "sv=1&sig=renewed"
    again = open_stream(f"{server.url}/toy?{server.signature}", **cache(tmp_path))
    assert again[[5, 0]].requests == expected.requests and server.asked.count(SECOND) == 1
    for url, kind in ((f"{server.url}/toy?sig=no", OSError), (f"{server.url}/toy", OSError)):
        with pytest.raises(kind, match="cannot fetch .*/toy/dataset.json in 3 .*403") as caught:
            open_stream(url, **cache(tmp_path))
        assert "sig=" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no .*/none/dataset.json$"):
        open_stream(f"{server.url}/none?{server.signature}", **cache(tmp_path))


@pytest.mark.parametrize("name", ["shard-000000.tar", "dataset.json"])
def test_a_file_is_not_its_folder(name):
    with pytest.raises(ValueError, match=f"https://host/{name} is a file: give the URL of the"):
        ShardStream(f"https://host/{name}?sig=1")


def test_any_file_system_of_fsspec(dataset, tmp_path):
    memory = fsspec.filesystem("memory")
    for name, data in contents(dataset).items():
        memory.pipe(f"/bucket/toy/{name}", data)
    try:
        stream, local = open_stream("memory://bucket/toy", **cache(tmp_path)), open_stream(dataset)
        batch, expected = stream[[9, 0, 4]], local[[9, 0, 4]]
        assert batch.requests == expected.requests and torch.equal(batch.images, expected.images)
        memory.rm("/bucket/toy/shard-000000.tar")
        with pytest.raises(FileNotFoundError, match="there is no memory://bucket/toy/shard-000000"):
            open_stream("memory://bucket/toy", cache_dir=str(tmp_path / "other"))[[0]]
    finally:
        memory.rm("/bucket", recursive=True)


def test_the_hub_is_one_of_them():
    assert isinstance(fetch._open("hf://datasets/owner/name/dataset.json")[0], HfFileSystem)


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("{}/nothing", FileNotFoundError, "there is no http.*/nothing/dataset.json"),
        ("http://127.0.0.1:9/toy", OSError, "cannot fetch http://127.0.0.1:9/toy/dataset.json in"),
        ("nfs3://host/toy", ValueError, "cannot fetch nfs3://host.*: fsspec knows no nfs3://"),
        ("s3://bucket/toy", ImportError, "cannot fetch s3://bucket/toy.*: Install s3fs"),
    ],
)
def test_what_cannot_be_fetched_is_said(server, tmp_path, url, kind, message):
    with pytest.raises(kind, match=message):
        open_stream(url.format(server.url), **cache(tmp_path))


@pytest.mark.parametrize(
    ("old", "text", "message"),
    [
        (None, "<html>", r"is no dataset.json \(Expecting value.*: give the URL of a dataset"),
        (None, "[]", r"is no dataset.json \(it has no 'format'\): give the URL of a"),
        ('"digest"', '"digits"', "it has no 'vocabulary.digest'"),
        ('"shard-000000.tar"', '"../../a.tar"', "names a shard '../../a.tar': give the URL of a d"),
    ],
)
def test_a_foreign_dataset_json_is_refused(server, tmp_path, old, text, message):
    path = tmp_path / "served/toy/dataset.json"
    path.write_text(text if old is None else path.read_text().replace(old, text))
    with pytest.raises(ValueError, match=message):
        open_stream(f"{server.url}/toy", **cache(tmp_path))
    assert not kept(tmp_path)


@pytest.mark.parametrize("verb", ["report", "status", "export", "refilter"])
def test_verbs_for_folders_say_so(verb, capsys):
    more = {"export": ["--format", "voc", "--out", "x"], "refilter": ["--out", "x"]}.get(verb, [])
    try:
        code = main([verb, "https://host/set", *more])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert "https://host/set is a URL, which `fit`, `val" in capsys.readouterr().err


def test_what_is_a_url():
    assert is_url("https://host/set") and is_url("s3://bucket/set") and is_url("hf://datasets/a/b")
    assert not is_url("runs/set") and not is_url("/a/b") and not is_url("C:\\set")
    assert isinstance(source_of("runs/set"), LocalSource)
    assert str(source_of("s3://bucket/set/")) == "s3://bucket/set"
