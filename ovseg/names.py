"""``ovseg names``: is a vocabulary said in words that a backbone and a grounder know?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ovseg.annotators.base import Annotator, taught_by
from ovseg.annotators.grounder import GrounderAnnotator
from ovseg.annotators.mmseg import MMSegAnnotator
from ovseg.backbones.base import DiffusionBackbone
from ovseg.backbones.common import DiffusersBackbone
from ovseg.backbones.text import (
    in_sentence,
    letters_of,
    positions_of,
    tokens_of,
    touching,
)
from ovseg.device import find_device
from ovseg.embedded import EMBEDDED
from ovseg.errors import VerbParser
from ovseg.grounders.folder import read_config
from ovseg.grounders.partner import build_backbone
from ovseg.names_drawn import Seen, look
from ovseg.report.numbers import percent
from ovseg.steps import write_text
from ovseg.vocabulary import Vocabulary

Part = TypeVar("Part", DiffusionBackbone, Annotator)


class Name(NamedTuple):
    """A word of a vocabulary, as a backbone's tokenizer sees it in the template's sentence.

    Attributes:
        class_id: Its class.
        name: The word or words.
        pieces: Its tokens.
        ids: Their numbers.
        problem: Why the backbone cannot embed it, or None.
    """

    class_id: int
    name: str
    pieces: list[str]
    ids: list[int]
    problem: str | None


def main(argv: Sequence[str]) -> None:
    """List the names of a vocabulary.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If an argument is wrong, or the parts do not fit together.
    """
    args = _parse(argv)
    vocabulary = Vocabulary.load(args.vocabulary, args.split)
    backbone = _backbone(args.backbone)
    names = read_names(vocabulary, backbone)
    seen = _look(args, vocabulary, backbone, names) if args.grounder else {}
    rows = [
        {
            "class": vocabulary[name.class_id].key,
            "name": name.name,
            "pieces": name.pieces,
            "ids": name.ids,
            "shares": shared(name, names),
            "problem": name.problem,
            **(seen[row]._asdict() if row in seen else {}),
            "verdict": verdict(name, seen.get(row), args),
        }
        for row, name in enumerate(names)
    ]
    _print(rows, bool(args.grounder))
    if args.json:
        write_text(args.json, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


def _look(
    args: argparse.Namespace, vocabulary: Vocabulary, backbone: DiffusersBackbone, names: list[Name]
) -> dict[int, Seen]:
    """Look at images of the names that the annotator knows; the keys are places in the list."""
    annotator, grounder = _annotator(args.annotator), GrounderAnnotator(args.grounder)
    annotator.bind(vocabulary)
    for part in (annotator, grounder):
        part.check(backbone)
        part.to(args.device)
    asked, _ = taught_by(annotator.describe(), vocabulary)
    words = {
        place: (vocabulary[name.class_id], name.name)
        for place, name in enumerate(names)
        if name.problem is None and name.class_id in asked
    }
    return look(backbone.to(args.device), annotator, grounder, words, args.images, args.seed)


def read_names(vocabulary: Vocabulary, backbone: DiffusersBackbone) -> list[Name]:
    """Return the names and synonyms of a vocabulary with their tokens; needs no weights.

    Of several tokenizers that must know a name, the tokens are the first one's.
    """
    tokenizers = backbone.TEXT(backbone.files).judges(backbone.names_in)
    first = tokenizers[0]
    names = []
    for entry in vocabulary.classes:
        for word in dict.fromkeys((entry.name, *entry.synonyms)):
            sentence, span = in_sentence(backbone.template, word)
            tokens = tokens_of(first, sentence)
            ids = [tokens[place].id for place in touching(tokens, span)]
            try:
                for tokenizer in tokenizers:
                    positions_of(tokenizer, sentence, span, word)
                problem = None
            except ValueError as error:
                problem = str(error)
            names.append(Name(entry.id, word, first.convert_ids_to_tokens(ids), ids, problem))
    return names


def shared(name: Name, names: Sequence[Name]) -> dict[str, list[str]]:
    """Return the pieces that a name shares with each of the others, where there are any.

    Pieces of one letter are left out: most names share some.
    """
    own = [piece for piece in dict.fromkeys(name.pieces) if len(letters_of(piece)) > 1]
    common = {n.name: [p for p in own if p in n.pieces] for n in names if n is not name}
    return {other: pieces for other, pieces in common.items() if pieces}


def verdict(name: Name, seen: Seen | None, args: argparse.Namespace) -> str:
    """Say in some words what is wrong with a name, "" if nothing is known to be."""
    if name.problem:
        return "cannot be embedded"
    if seen is None:
        return "unknown to the annotator" if args.grounder else ""
    if seen.drawn < args.min_drawn:
        return "cannot draw"
    return "cannot ground" if seen.miou is not None and seen.miou < args.min_iou else ""


def _print(rows: list[dict], looked: bool) -> None:
    table = Table("class", "name", "tokens", "shared with")
    for head in ("drawn %", "mIoU") if looked else ():
        table.add_column(head, justify="right")
    table.add_column("verdict")
    for row in rows:
        tokens = " ".join(f"{p} {i}" for p, i in zip(row["pieces"], row["ids"], strict=True))
        others = "; ".join(f"{name}: {' '.join(p)}" for name, p in row["shares"].items())
        scores = (percent(row.get("drawn")), percent(row.get("miou"))) if looked else ()
        said = row["problem"] or row["verdict"]
        table.add_row(*map(Text, (row["class"], row["name"], tokens, others, *scores, said)))
    Console().print(table)
    for said in dict.fromkeys(row["verdict"] for row in rows if row["verdict"]):
        print(f"{said}: {', '.join(row['name'] for row in rows if row['verdict'] == said)}")
    print(f"{sum(not row['verdict'] for row in rows)} of {len(rows)} names are fine")


def _backbone(source: str) -> DiffusersBackbone:
    if source == EMBEDDED:
        backbone = build_backbone(read_config(EMBEDDED), EMBEDDED, local_files_only=True)
    else:
        backbone = from_yaml(DiffusionBackbone, source)
    if not isinstance(backbone, DiffusersBackbone):
        raise ValueError(
            f"--backbone {source} is a {type(backbone).__name__}; names are read by the tokenizers "
            "of a UNetBackbone or MMDiTBackbone"
        )
    return backbone


def _annotator(source: str) -> Annotator:
    if source == EMBEDDED:
        return MMSegAnnotator(EMBEDDED, classes="all")
    return from_yaml(Annotator, source)


def from_yaml(kind: type[Part], path: str) -> Part:
    """Build a part from a YAML of its class_path and init_args.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the part cannot be built.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}: give a YAML with class_path and init_args")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=kind, required=True, sub_configs=True)
    return parser.instantiate(parser.parse_args([f"--part={path}"])).part


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = VerbParser(
        prog="ovseg names",
        description="The words of a vocabulary: their tokens and, with a grounder, whether they "
        "are drawn and found.",
    )
    parser.add_argument("--vocabulary", required=True, help="clipart, voc, or a YAML file")
    parser.add_argument("--split", default="1", help="its split (1)")
    parser.add_argument("--backbone", required=True, help="clipart, or a backbone's YAML file")
    parser.add_argument(
        "--grounder", help="a grounder folder or Hub id, or clipart: look at images"
    )
    parser.add_argument(
        "--annotator", help="whose masks are the truth: a YAML file, or clipart (the grounder's)"
    )
    parser.add_argument("--images", type=int, default=8, help="images of each name (8)")
    parser.add_argument("--seed", type=int, default=0, help="of the images (0)")
    parser.add_argument(
        "--min-drawn", type=float, default=50, help="least %% of images that show a name (50)"
    )
    parser.add_argument(
        "--min-iou", type=float, default=50, help="least mean IoU of a name's masks, in %% (50)"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    args.device = find_device(args.device)
    if args.images < 1 or args.seed < 0:
        raise ValueError(
            f"--images must be >= 1 and --seed >= 0, got {args.images} and {args.seed}"
        )
    if args.grounder == EMBEDDED:
        args.annotator = args.annotator or EMBEDDED
    if bool(args.grounder) != bool(args.annotator):
        raise ValueError(
            "give --grounder and --annotator together: the one is judged by the other's masks"
        )
    return args
