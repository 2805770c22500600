"""JSON files that are not what was written."""

import json

import pytest

from ovseg.data.json_file import read_json

NEEDED = ["format", "a.b", "parts.*.size"]


def test_what_is_there_is_returned(tmp_path):
    whole = {"format": 2, "a": {"b": None, "c": 1}, "parts": {"x": {"size": 0}, "y": {"size": 3}}}
    for data in (whole, whole | {"parts": {}}, whole | {"more": []}):
        (tmp_path / "x.json").write_text(json.dumps(data))
        assert read_json(tmp_path / "x.json", NEEDED) == data


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "Expecting value: line 1 column 1"),
        (b'{"format": 2', "Expecting ',' delimiter: line 1"),
        (b"\xff\xfe", "'utf-8' codec can't decode"),
        (b"[]", "it has no 'format'"),
        (b'{"format": 2}', "it has no 'a.b'"),
        (b'{"format": 2, "a": "b"}', "it has no 'a.b'"),
        (b'{"format": 2, "a": {"b": 1}, "parts": []}', r"it has no 'parts.\*.size'"),
        (b'{"format": 2, "a": {"b": 1}, "parts": {"x": {}}}', r"it has no 'parts.\*.size'"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, text, why):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(
        ValueError, match=f"^{path} is no x.json [(]{why}.*[)]: restore it"
    ) as raised:
        read_json(path, NEEDED)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="[)]: mend it$"):
        read_json(path, NEEDED, "mend it")
