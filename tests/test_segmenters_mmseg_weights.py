"""Pretrained backbones: names of MMEngine's table, downloads, what is printed and refused."""

import functools
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from test_segmenters_mmseg import Evil, model

from ovseg.segmenters.mmseg import MMSegSegmenter


class Silent(SimpleHTTPRequestHandler):
    asked: list[str] = []

    def log_message(self, *_):
        Silent.asked.append(self.path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Return a folder that is served here, and its URL; caches are empty."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(folder)))
    threading.Thread(target=made.serve_forever, daemon=True).start()
    Silent.asked = []
    url = f"http://127.0.0.1:{made.server_port}"
    table = {"tiny_v1c": f"{url}/tiny_v1c-1234.pth", "evil": f"{url}/evil.pth"}
    (tmp_path / "open_mmlab.json").write_text(json.dumps(table))
    yield folder, url
    made.shutdown()
    made.server_close()


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Return the weights of a backbone and of its classifier."""
    torch.manual_seed(0)
    backbone = MMSegSegmenter(4, model=model()).model.backbone.state_dict()
    return {**backbone, "fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}


def same(net: MMSegSegmenter, state: dict) -> bool:
    own = net.model.backbone.state_dict()
    return all(torch.equal(own[key], state[key]) for key in own)


def test_a_name_of_the_table_is_downloaded_once(server, state, capsys):
    folder, url = server
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, folder / "tiny_v1c-1234.pth")
    net = MMSegSegmenter(4, model=model(), pretrained="open-mmlab://tiny_v1c")
    total = len(state) - 2
    assert same(net, state)
    assert capsys.readouterr().out == (
        f"weights open-mmlab://tiny_v1c: {total} of {total} tensors loaded; newly made: none; "
        "not used: fc.bias, fc.weight\n"
    )
    again = MMSegSegmenter(4, model=model(), pretrained=f"{url}/tiny_v1c-1234.pth")
    assert same(again, state) and len(Silent.asked) == 1


def test_other_ranks_are_silent(server, state, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    torch.save(state, tmp_path / "a.pth")
    assert same(MMSegSegmenter(4, model=model(), pretrained=str(tmp_path / "a.pth")), state)
    assert capsys.readouterr().out == ""


def test_norms_of_outputs_are_newly_made(tmp_path, capsys):
    swin = {"type": "SwinTransformer", "embed_dims": 8, "depths": [1, 1], "num_heads": [1, 2]}
    swin |= {"strides": [4, 2], "out_indices": [0, 1], "window_size": 2}
    changes = {"in_channels": 16, "dilations": [1], "in_index": 1}
    wanted = model(backbone=swin, auxiliary_head=None)
    wanted["decode_head"] |= changes
    torch.manual_seed(0)
    given = MMSegSegmenter(4, model=wanted).model.backbone.state_dict()
    kept = {k: v + 1 for k, v in given.items() if not k.startswith("norm") and "index" not in k}
    torch.save(
        {**kept, "norm.weight": torch.zeros(16), "head.bias": torch.zeros(3)}, tmp_path / "s"
    )
    net = MMSegSegmenter(4, model=wanted, pretrained=str(tmp_path / "s"))
    own = net.model.backbone.state_dict()
    assert all(torch.equal(own[key], value) for key, value in kept.items())
    line = capsys.readouterr().out
    assert "newly made: norm0.bias, norm0.weight, norm1.bias, norm1.weight; not used: head" in line


def test_refusals(server, state, tmp_path):
    folder, url = server
    torch.save({"state_dict": Evil()}, folder / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.* hold pickled objects \(print\), which"):
        MMSegSegmenter(4, model=model(), pretrained="open-mmlab://evil")
    with pytest.raises(
        ValueError, match="knows no weights open-mmlab://tiny_v2; near are tiny_v1c"
    ):
        MMSegSegmenter(4, model=model(), pretrained="open-mmlab://tiny_v2")
    with pytest.raises(FileNotFoundError, match=r"cannot download .*none.pth: .*404.* put it at"):
        MMSegSegmenter(4, model=model(), pretrained=f"{url}/none.pth")
    assert [path.name for path in (tmp_path / "torch").rglob("*.*")] == ["evil.pth"]
    with pytest.raises(FileNotFoundError, match="no weights file nothing.pth"):
        MMSegSegmenter(4, model=model(), pretrained="nothing.pth")
    for change, words in (
        ({"layer3.0.conv1.weight": torch.zeros(1)}, "0 tensors missing, 1 unknown"),
        ({"conv1.weight": None, "stem.0.weight": None}, "1 tensors missing, 0 unknown"),
        ({"stem.0.weight": torch.zeros(1, 3, 3, 3)}, "1 of another shape, the first is stem"),
    ):
        wrong = {k: v for k, v in {**state, **change}.items() if v is not None}
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(ValueError, match=f"another architecture: .*{words}"):
            MMSegSegmenter(4, model=model(), pretrained=str(tmp_path / "wrong.pth"))


def test_another_number_of_classes_is_told_from_another_architecture(tmp_path):
    path = str(tmp_path / "net.pth")
    torch.save(MMSegSegmenter(21, model=model()).state_dict(), path)
    with pytest.raises(ValueError, match="net.pth has 21 classes, 16 are wanted: set data.vocab"):
        MMSegSegmenter(16, model=model(), checkpoint=path)
    wider = model()
    wider["decode_head"]["channels"] = 4  # the classifier reads fewer channels too
    with pytest.raises(ValueError, match="another architecture: 0 tensors missing, 0 unknown, "):
        MMSegSegmenter(16, model=wider, checkpoint=path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("list.pth", [torch.zeros(1)], "list.pth are no state dict: .* got list without"),
        ("within.pth", {"state_dict": 3}, "within.pth are no state dict: .* got int without"),
        ("empty.pth", b"", "empty.pth are damaged"),
        ("text.pth", b"hello world", "text.pth are damaged"),
        ("short.safetensors", b"12", "short.safetensors are damaged, or no safetensors"),
        ("text.safetensors", b"hello world", "text.safetensors are damaged"),
    ],
)
@pytest.mark.parametrize("argument", ["checkpoint", "pretrained"])
def test_a_file_without_weights_is_named(argument, name, content, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=words) as error:
        MMSegSegmenter(4, model=model(), **{argument: str(path)})
    assert "\n" not in str(error.value)
