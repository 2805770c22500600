"""Turn an MMSegmentation config and checkpoint into the folder of a segmenter.

python tools/import_segmenter.py CONFIG CHECKPOINT OUT --vocabulary voc --trained_on seen
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ovseg.errors import run_tool
from ovseg.kept import check_replaceable
from ovseg.segmenters.folder import save_segmenter
from ovseg.segmenters.loading import BACKGROUND, class_names
from ovseg.segmenters.mmseg import MMSegSegmenter
from ovseg.segmenters.mmseg_config import normalisation, read_config
from ovseg.segmenters.mmseg_weights import read_checkpoint, state_of
from ovseg.vocabulary import Vocabulary

CLASSIFIER = re.compile(r"decode_head\.(\d+\.)?conv_seg\.weight$")


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, and say what was loaded and where the result is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path, help="of MMSegmentation: .py (which is run), .yaml")
    parser.add_argument("checkpoint", type=Path, help="its weights, such as the Runner writes")
    parser.add_argument("out", type=Path, help="the segmenter folder to write")
    parser.add_argument("--vocabulary", required=True, help="its classes: a name or a YAML file")
    parser.add_argument("--split", default="1", help="of the vocabulary, for --trained_on seen")
    parser.add_argument(
        "--trained_on",
        default="all",
        help="classes whose masks it has learnt from: all, seen, or keys with commas between",
    )
    args = parser.parse_args(argv)

    def convert() -> None:
        vocabulary = Vocabulary.load(args.vocabulary, args.split)
        run(args.config, args.checkpoint, args.out, vocabulary, args.trained_on)

    code = run_tool("import_segmenter", convert)
    if code == 0:
        print(f"{args.out}: use it as `checkpoint_folder: {args.out}` of an MMSegAnnotator")
    return code


def run(config: Path, checkpoint: Path, out: Path, vocabulary: Vocabulary, trained_on: str) -> None:
    """Convert one checkpoint.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ValueError: If config, weights and vocabulary do not fit together, or something else is in
            the folder.
    """
    check_replaceable(out, "segmenter")
    groups = trained_on in ("all", "seen")
    taught = vocabulary.select(
        trained_on if groups else [key.strip() for key in trained_on.split(",")]
    )
    model, preprocessor = read_config(config)
    norm = normalisation(preprocessor)
    content = read_checkpoint(str(checkpoint))
    names = class_names(content)
    count = _count(names, state_of(content, str(checkpoint)))
    if count not in (None, vocabulary.num_classes):
        raise ValueError(
            f"{checkpoint} has {count} classes, vocabulary {vocabulary.name!r} has "
            f"{vocabulary.num_classes} with background: give the vocabulary that it was trained on"
        )
    order = None if names is None else class_order(names, vocabulary)
    segmenter = MMSegSegmenter(
        vocabulary.num_classes, model=model, checkpoint=str(checkpoint), **norm
    )
    if order is not None and order != sorted(order):
        rearrange(segmenter, order, names, vocabulary)
    save_segmenter(segmenter, out, vocabulary, taught)
    source = "the config's" if norm else "ImageNet's, for the config has no data_preprocessor"
    keys = ", ".join(vocabulary[i].key for i in sorted(taught))
    _say(checkpoint, segmenter, source, _order(order), keys)


def class_order(names: Sequence[str], vocabulary: Vocabulary) -> list[int]:
    """Return the channel of each class id, background first.

    Raises:
        ValueError: If a name is unknown, occurs twice, or none is background.
    """
    ids = [0 if name.lower() == BACKGROUND else vocabulary.id_of(name) for name in names]
    if missing := [i for i in range(vocabulary.num_classes) if i not in ids]:
        raise ValueError(
            f"the checkpoint has no class {vocabulary.names[missing[0]]!r}, which vocabulary "
            f"{vocabulary.name!r} has: give the vocabulary that it was trained on"
        )
    return [ids.index(i) for i in range(vocabulary.num_classes)]


@torch.no_grad()
def rearrange(
    segmenter: MMSegSegmenter, order: Sequence[int], names: Sequence[str], vocabulary: Vocabulary
) -> None:
    """Bring the channels of every head into the vocabulary's order.

    Raises:
        ValueError: If a head's classes are not the rows of its `conv_seg` alone.
    """
    heads = list(_heads(segmenter.model))
    for head in heads:
        rows = {name for name, value in head.state_dict().items() if len(order) in value.shape}
        if "conv_seg.weight" not in rows or rows - {"conv_seg.weight", "conv_seg.bias"}:
            first = next(i for i, channel in enumerate(order) if channel != i)
            raise ValueError(
                f"class {first} is {names[first]!r} in the checkpoint, {vocabulary.names[first]!r} "
                f"in vocabulary {vocabulary.name!r}, and the classes of a {type(head).__name__} "
                "cannot be moved: give a vocabulary in the checkpoint's order"
            )
    for head in heads:
        for parameter in head.conv_seg.parameters():
            parameter.copy_(parameter[list(order)])


def _heads(network: nn.Module) -> Iterable[nn.Module]:
    for name in ("decode_head", "auxiliary_head"):
        head = getattr(network, name, None)
        if head is not None:
            yield from head if isinstance(head, nn.ModuleList) else [head]


def _count(names: Sequence[str] | None, state: Mapping[str, Tensor]) -> int | None:
    """Return how many classes there are by their names, else by the rows of the last classifier."""
    rows = [len(value) for name, value in state.items() if CLASSIFIER.search(name)]
    return len(names) if names else next(reversed(rows), None)


def _say(checkpoint: Path, segmenter: MMSegSegmenter, norm: str, order: str, taught: str) -> None:
    mean, std = (segmenter.init_args[key] for key in ("mean", "std"))
    print(f"{checkpoint}: {len(segmenter.model.state_dict())} tensors loaded")
    print(f"classes: {segmenter.num_classes} with background, {order}")
    print(f"images: RGB, mean {mean}, std {std}, {norm}")
    print(f"trained on masks of: {taught}")


def _order(order: Sequence[int] | None) -> str:
    if order is None:
        return "their order taken on trust, for the checkpoint does not name them"
    moved = list(order) != sorted(order)
    return "moved to the vocabulary's order" if moved else "named in the vocabulary's order"


if __name__ == "__main__":
    sys.exit(main())
