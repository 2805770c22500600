"""Whether the clip-art world is fit for a head to be trained on it: numbers against bars."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from ovseg.annotators.mmseg import MMSegAnnotator
from ovseg.backbones.unet import UNetBackbone
from ovseg.clipart.training.measure import (
    annotator_iou,
    contact_sheet,
    copying,
    generated_share,
    language,
    named_colors,
)
from ovseg.embedded import WEIGHTS
from ovseg.vocabulary import Vocabulary

TAPS = ("down_blocks.1.attentions.0", "mid_block", "up_blocks.1.attentions.1", "up_blocks.2")
"""Where the features are read that names must be told by."""

VERSION = "1.0"
"""Of the shipped world. Another noun, text encoder, autoencoder, U-Net or annotator: a new one."""

SAMPLER = {
    "dtype": "auto",
    "steps": 8,
    "guidance_scale": 3.0,
    "scheduler": {"class_path": "diffusers.UniPCMultistepScheduler"},
}
"""How the shipped configs sample."""


class Verdict(NamedTuple):
    """A measured number and the bar that it must reach, or stay under if ``at_most``."""

    what: str
    value: float
    bar: float
    at_most: bool = False

    @property
    def passed(self) -> bool:
        """Whether it does."""
        return bool(self.value <= self.bar if self.at_most else self.value >= self.bar)


def measure(
    pipeline: str,
    annotator: str,
    out: Path,
    images: int = 400,
    scenes: int = 1000,
    device: str = "cpu",
) -> dict:
    """Measure a world; write ``clipart.json``, contact sheets and a plot of the verdicts.

    Args:
        pipeline: Folder of a diffusers pipeline, or "clipart", the embedded one.
        annotator: Folder of an annotator, or "clipart".
        out: Folder to write to.
        images: Generated images per number of objects.
        scenes: Drawn scenes for the annotator.
        device: Where to run.
    """
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary.load("clipart")
    oracle = MMSegAnnotator(annotator, classes="all").to(device)
    oracle.bind(vocabulary)
    backbone = UNetBackbone(pipeline, list(TAPS), **SAMPLER).to(device)
    result = {"annotator": annotator_iou(oracle, vocabulary, scenes)}
    for objects, name in ((1, "one_object"), (2, "two_objects")):
        result[name], made = generated_share(backbone, oracle, vocabulary, objects, images)
        contact_sheet(made[:40], out / f"{name}.png")
    result["copying"] = copying(made)
    result["right_color"] = named_colors(backbone, oracle, vocabulary, max(40, images // 2))
    result["language"] = language(backbone, oracle, vocabulary, images)
    found = verdicts(result)
    result["world"] = {"version": VERSION, "digest": digest()} if pipeline == "clipart" else None
    result["gates"] = {v.what: [v.value, v.bar, v.passed] for v in found}
    (out / "clipart.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    plot(found, out / "gates.png")
    show(found)
    return result


def verdicts(result: dict) -> list[Verdict]:
    """Hold what `measure` found against the bars that were set before any head was trained."""
    annotator = result["annotator"]
    distances = result["copying"]
    return [
        Verdict("annotator, mIoU on drawn scenes", annotator["miou"], 92.0),
        Verdict("annotator, IoU of the worst class", min(annotator["per_class"].values()), 85.0),
        Verdict("generated images that show it, one object", result["one_object"]["good"], 95.0),
        Verdict("generated images that show it, two objects", result["two_objects"]["good"], 85.0),
        Verdict("another class on top, one object", result["one_object"]["confused"], 5.0, True),
        Verdict("another class on top, two objects", result["two_objects"]["confused"], 5.0, True),
        Verdict("named colour right", result["right_color"], 90.0),
        Verdict(
            "distance to training scenes, % of held-out scenes'",
            100 * distances["generated"] / distances["held_out"],
            100.0,
        ),
        *(
            Verdict(f"unseen name found by its features, split {key}", facts["retrieved"], 60.0)
            for key, facts in result["language"].items()
            if key != "closest"
        ),
    ]


def show(found: Sequence[Verdict]) -> None:
    """Print the verdicts as a table."""
    table = Table(title="Gates of the clip-art world", title_justify="left")
    for head in ("", "value", "bar", ""):
        table.add_column(head, justify="left" if not head else "right")
    for v in found:
        bar = f"{'<=' if v.at_most else '>='} {v.bar:g}"
        table.add_row(v.what, f"{v.value:.1f}", bar, "pass" if v.passed else "FAIL")
    Console().print(table)


def plot(found: Sequence[Verdict], path: Path) -> None:
    """Draw each number as a bar, with its bar to pass as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.42 * len(found) + 1), layout="constrained")
    axes = figure.add_subplot(xlabel="percent", title="Gates of the clip-art world")
    places = range(len(found))
    colors = ["tab:green" if v.passed else "tab:red" for v in found]
    axes.barh(places, [v.value for v in found], color=colors, height=0.6)
    for place, v in enumerate(found):
        axes.plot([v.bar, v.bar], [place - 0.42, place + 0.42], color="black", linewidth=2)
        axes.annotate(
            f" {v.value:.1f} ({'at most' if v.at_most else 'at least'} {v.bar:g})",
            (max(v.value, v.bar), place),
            verticalalignment="center",
        )
    axes.set_yticks(places, [v.what for v in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(max(v.value, v.bar) for v in found))
    figure.savefig(path, dpi=120)


def digest() -> str:
    """Hex digest of the shipped world: its models, nouns and classes, without any grounder."""
    package = files("ovseg")
    facts = ["clipart/nouns.yaml", "vocabularies/clipart.yaml"]
    models = [p for p in WEIGHTS.rglob("*") if p.is_file() and "grounder" not in p.parts]
    total = hashlib.sha256()
    for path in [*(Path(str(package / fact)) for fact in facts), *sorted(models)]:
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:16]


def gates(folder: Path, out: Path, seed: int = 0, device: str = "cpu") -> None:
    """Measure what was trained in ``out``: the last stage before any head."""
    measure(str(folder), str(out / "annotator"), out / "gates", device=device)
