"""``ovseg prompts``: the prompts that a stage's config asks for; nothing else of it is built."""

from __future__ import annotations

import argparse
import importlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ovseg.data.prompts import Prompts
from ovseg.errors import VerbParser
from ovseg.structures import Entity, Request
from ovseg.vocabulary import Vocabulary


def main(argv: Sequence[str]) -> None:
    """Print the first prompts of a stream.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If an argument is wrong, or the config has no such prompts.
    """
    args = _parse(argv)
    files = ", ".join(map(str, args.config))
    data = _data(args.config, files)
    stream = _stream(data, args.stream, files)
    name = _build("vocabulary", str, data["vocabulary"])
    vocabulary = Vocabulary.load(name, str(data.get("split", "1")))
    prompts = _build("prompts", Prompts, stream["prompts"])
    seed = _build("seed", int, stream.get("seed", 0)) if args.seed is None else args.seed
    requests = [prompts.request(index, vocabulary, seed) for index in range(args.n)]
    if args.json:
        for request in requests:
            print(json.dumps(_facts(request, vocabulary), ensure_ascii=False))
    else:
        _print(requests, vocabulary)
        if counts := prompts.counts():
            print(", ".join(f"{count} {how}" for how, count in counts.items()))


def marked(request: Request) -> Text:
    """Return a prompt with its entities underlined."""
    text = Text(request.prompt)
    for entity in request.entities:
        text.stylize("bold underline", *entity.span)
    return text


def _data(paths: Sequence[Path], files: str) -> Mapping[str, Any]:
    """Return the arguments of the data module of layered configs."""
    found: Mapping[str, Any] = {}
    for path in paths:
        found = _layered(found, _at(_read(path), "data", "init_args"))
    if not {"vocabulary", "predict"} <= found.keys():
        raise ValueError(
            f"{files} has no data.init_args.vocabulary and predict: give the config of an "
            "`ovseg predict`"
        )
    return found


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the config of an `ovseg predict`")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None


def _layered(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> Mapping[str, Any]:
    """Lay a config over another as `predict` does: streams that it does not name are left out."""
    data = {**lower, **upper}
    if "predict" in lower and "predict" in upper:
        before = _at(lower, "predict")
        streams = _at(upper, "predict").items()
        data["predict"] = {name: _part(before.get(name), stream) for name, stream in streams}
    return data


def _part(lower: Any, upper: Any) -> Any:
    """Lay a stream or its prompts over another: what the class takes stays, if not given anew."""
    lower, upper = ({"class_path": x} if isinstance(x, str) else x for x in (lower, upper))
    if not isinstance(lower, Mapping) or not isinstance(upper, Mapping):
        return upper
    path = upper.get("class_path", lower.get("class_path"))
    kept, given = _at(lower, "init_args"), _at(upper, "init_args")
    if kept and path != lower.get("class_path"):
        kept = {key: kept[key] for key in kept.keys() & _taken(path)}
    if "prompts" in kept and "prompts" in given:
        given = {**given, "prompts": _part(kept["prompts"], given["prompts"])}
    return {"class_path": path, "init_args": {**kept, **given}}


def _taken(class_path: str) -> set[str]:
    """Return the names of a class's arguments."""
    module, _, name = str(class_path).rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"no class {class_path!r} ({error}): a config that changes a class gives its whole path"
        ) from None
    return {key.removeprefix("_.") for key in ArgumentParser().add_class_arguments(kind, "_")}


def _stream(data: Mapping[str, Any], name: str | None, files: str) -> Mapping[str, Any]:
    """Return the arguments of a stream that has prompts."""
    streams = {key: _at(data, "predict", key, "init_args") for key in _at(data, "predict")}
    streams = {key: found for key, found in streams.items() if "prompts" in found}
    if not streams:
        raise ValueError(f"{files} has no stream with prompts under data.init_args.predict")
    if name is None and len(streams) > 1:
        raise ValueError(f"{files} has several streams: give --stream {' or '.join(streams)}")
    if name is not None and name not in streams:
        raise ValueError(f"{files} has no stream {name!r} with prompts: {', '.join(streams)}")
    return streams[next(iter(streams)) if name is None else name]


def _at(config: Any, *keys: str) -> Mapping[str, Any]:
    """Return the mapping under some keys, an empty one if it is not there."""
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config if isinstance(config, Mapping) else {}


def _build(name: str, kind: type, value: Any) -> Any:
    """Return what `predict` would make of an argument."""
    if value is None:
        raise ValueError(f"{name} is null: give it a value")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=kind, required=True)
    return parser.instantiate(parser.parse_object({name: value}))[name]


def _facts(request: Request, vocabulary: Vocabulary) -> dict:
    return {
        "index": request.index,
        "seed": request.seed,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "entities": [
            {"class": vocabulary[e.class_id].key, "name": e.name, "span": list(e.span)}
            for e in request.entities
        ],
    }


def _print(requests: Sequence[Request], vocabulary: Vocabulary) -> None:
    columns = (Column(name, overflow="fold") for name in ("index", "seed", "prompt", "classes"))
    table = Table(*columns)
    for request in requests:
        said = ", ".join(_said(entity, vocabulary) for entity in request.entities)
        table.add_row(str(request.index), str(request.seed), marked(request), Text(said))
    Console().print(table)
    counts = Counter(vocabulary[e.class_id].name for r in requests for e in r.entities)
    shares = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    print(f"{len(requests)} prompts, {counts.total()} entities: {shares}")


def _said(entity: Entity, vocabulary: Vocabulary) -> str:
    """Return an entity's class, and its word if that is another one."""
    name = vocabulary[entity.class_id].name
    return name if name == entity.name else f"{name} ({entity.name})"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = VerbParser(
        prog="ovseg prompts",
        description="Print the first prompts of a predict stream. Neither its backbone nor its "
        "annotator is built.",
    )
    parser.add_argument(
        "--config",
        "-c",
        type=Path,
        action="append",
        required=True,
        help="a YAML for `predict`; given several times, later ones change earlier ones",
    )
    parser.add_argument("--stream", help="which of its streams, if it has several")
    parser.add_argument("-n", type=int, default=20, help="number of prompts (20)")
    parser.add_argument("--seed", type=int, help="another seed than the stream's")
    parser.add_argument("--json", action="store_true", help="print one JSON object per prompt")
    args = parser.parse_args(argv)
    if args.n < 1:
        raise ValueError(f"-n must be >= 1, got {args.n}")
    return args
