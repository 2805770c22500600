"""``ovseg prompts``: the prompts that a stage's config asks for; nothing else of it is built."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ovseg.data.prompts import Prompts
from ovseg.structures import Entity, Request
from ovseg.vocabulary import Vocabulary


def main(argv: Sequence[str]) -> None:
    """Print the first prompts of a stream.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If an argument is wrong, or the config has no such prompts.
    """
    args = _parse(argv)
    data = _data(args.config)
    stream = _stream(data, args.stream, args.config)
    vocabulary = Vocabulary.load(data["vocabulary"], str(data.get("split", "1")))
    prompts = _build(stream["prompts"])
    seed = stream.get("seed", 0) if args.seed is None else args.seed
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


def _data(path: Path) -> Mapping[str, Any]:
    """Return the arguments of a config's data module."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the config of an `ovseg predict`")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    found = _at(config, "data", "init_args")
    if not {"vocabulary", "predict"} <= found.keys():
        raise ValueError(
            f"{path} has no data.init_args.vocabulary and predict: give the config of an "
            "`ovseg predict`"
        )
    return found


def _stream(data: Mapping[str, Any], name: str | None, path: Path) -> Mapping[str, Any]:
    """Return the arguments of a stream that has prompts."""
    streams = {key: _at(data, "predict", key, "init_args") for key in _at(data, "predict")}
    streams = {key: found for key, found in streams.items() if "prompts" in found}
    if not streams:
        raise ValueError(f"{path} has no stream with prompts under data.init_args.predict")
    if name is None and len(streams) > 1:
        raise ValueError(f"{path} has several streams: give --stream {' or '.join(streams)}")
    if name is not None and name not in streams:
        raise ValueError(f"{path} has no stream {name!r} with prompts: {', '.join(streams)}")
    return streams[next(iter(streams)) if name is None else name]


def _at(config: Any, *keys: str) -> Mapping[str, Any]:
    """Return the mapping under some keys, an empty one if it is not there."""
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config if isinstance(config, Mapping) else {}


def _build(config: Any) -> Prompts:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--prompts", type=Prompts, required=True)
    return parser.instantiate(parser.parse_object({"prompts": config})).prompts


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
    table = Table("index", "seed", "prompt", "classes")
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
    parser = argparse.ArgumentParser(
        prog="ovseg prompts",
        description="Print the first prompts of a predict stream. Neither its backbone nor its "
        "annotator is built.",
    )
    parser.add_argument("--config", "-c", type=Path, required=True, help="a YAML for `predict`")
    parser.add_argument("--stream", help="which of its streams, if it has several")
    parser.add_argument("-n", type=int, default=20, help="number of prompts (20)")
    parser.add_argument("--seed", type=int, help="another seed than the stream's")
    parser.add_argument("--json", action="store_true", help="print one JSON object per prompt")
    args = parser.parse_args(argv)
    if args.n < 1:
        raise ValueError(f"-n must be >= 1, got {args.n}")
    return args
