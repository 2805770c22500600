"""Grounding of pictures that no generator made: drawn scenes, whose masks are exact.

    python tools/measure_grounder.py --samples 1 4 --inversion-steps 10 50
    python tools/measure_grounder.py --guided 1 2 4 6

The scenes go through the autoencoder, are noised (or inverted) to the tapped step, and the grounder
is asked for the names that they show, seen or unseen: no annotator has a say. One and two objects,
a column each for images of seen and of unseen names. Table, JSON and a plot beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from ovseg import GroundedDiffusion
from ovseg.annotators.guided import follow_edges
from ovseg.clipart.stream import DrawnScenes
from ovseg.data.prompts import fill
from ovseg.errors import run_tool
from ovseg.grounders.folder import folder_digest, read_config
from ovseg.metrics import GroundingIoU
from ovseg.steps import write_text
from ovseg.structures import Entities, Request, entity_targets
from ovseg.vocabulary import Vocabulary

SEED, NOISE = 700_000, 1_000_000
PROMPT = "a photo of {objects}"
COLUMNS = ("one_seen", "one_unseen", "two_seen", "two_unseen")


@torch.no_grad()
def ground(
    model: GroundedDiffusion, images: Tensor, requests: list[Request], samples: int = 1
) -> tuple[Tensor, Entities]:
    """Return probabilities ``(B, K, H, W)``, the mean over draws of the noise, and the entities."""
    entities, draws = model.backbone.entities(requests), []
    for draw in range(samples):
        noised = [request._replace(seed=request.seed + draw * NOISE) for request in requests]
        latents = model.backbone.encode_image(images, noised)
        features = model.backbone.features(latents, model.backbone.timesteps, requests)
        logits = model.grounder(features, entities)
        logits = interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        draws.append(logits.sigmoid())
    return torch.stack(draws).mean(dim=0), entities


def measure(
    model: GroundedDiffusion, vocabulary: Vocabulary, scenes: int, samples: int = 1, guided: int = 0
) -> dict[str, dict]:
    """Score columns of scenes whose names are all seen, or all unseen.

    Args:
        model: What is measured.
        vocabulary: Its classes.
        scenes: Of each column.
        samples: Draws of the noise.
        guided: Radius of the guided filter of the masks, 0 for none.
    """
    result = {}
    for objects, word in ((1, "one"), (2, "two")):
        stream = DrawnScenes(40 * scenes, SEED + objects, objects=(objects,))
        stream.bind(vocabulary)
        for side in ("seen", "unseen"):
            chosen = set(vocabulary.select(side))
            metric, used, position = GroundingIoU(vocabulary.num_classes), 0, 0
            bar = tqdm(total=scenes, desc=f"{word}, {side}", mininterval=5)
            while used < scenes and position < len(stream):
                batch = stream[range(position, position + 100)]
                position += 100
                ids = [sorted(set(label.unique().tolist()) - {0}) for label in batch.labels]
                rows = [i for i, row in enumerate(ids) if len(row) == objects and chosen >= {*row}]
                rows = rows[: scenes - used]
                if not rows:
                    continue
                requests = [
                    Request(row, SEED + position + row, *fill(PROMPT, ids[row], vocabulary))
                    for row in rows
                ]
                masks, entities = ground(model, batch.images[rows], requests, samples)
                if guided:
                    masks = follow_edges(masks, batch.images[rows], guided)
                targets, pixels = entity_targets(batch.labels[rows], entities.class_ids)
                metric.update(masks, targets, pixels, entities.class_ids, entities.valid)
                used += len(rows)
                bar.update(len(rows))
            bar.close()
            scores = metric.compute()
            result[f"{word}_{side}"] = {"miou": float(scores["miou"]), "images": used}
    return result


class Way(NamedTuple):
    """How pictures are brought to the tapped step, and read there."""

    grounder: str
    inversion_steps: int
    samples: int
    guided: int = 0

    @property
    def words(self) -> str:
        """For people."""
        if self.inversion_steps:
            return f"inversion, {self.inversion_steps} steps"
        guided = f", guided {self.guided}" if self.guided else ""
        return f"noise, {self.samples} draw{'s' * (self.samples > 1)}{guided}"


def compare(ways: Sequence[Way], scenes: int, out: Path) -> list[dict]:
    """Measure every way that ``out`` does not hold, writing after each."""
    rows = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else []
    for way in ways:
        facts = {**way._asdict(), "digest": folder_digest(way.grounder), "scenes": scenes}
        if any(facts.items() <= row.items() for row in rows):
            continue
        split = (read_config(way.grounder).get("vocabulary") or {}).get("split", "1")
        model = GroundedDiffusion.from_pretrained(way.grounder)
        model.backbone.inversion_steps = way.inversion_steps
        vocabulary, start = Vocabulary.load("clipart", split), time.perf_counter()
        columns = measure(model, vocabulary, scenes, way.samples, way.guided)
        images = sum(column["images"] for column in columns.values())
        spent = (time.perf_counter() - start) / max(1, images)
        (timestep,) = model.backbone.timesteps.tolist()[:1]
        facts |= {"timestep": timestep, "seconds_per_image": round(spent, 4)}
        rows.append({**facts, "columns": columns})
        write_text(out, json.dumps(rows, indent=2))
    return rows


def show(rows: list[dict], console: Console) -> None:
    """Print the rows."""
    table = Table("grounder", "timestep", "way", *COLUMNS, "s / image", title="mIoU, drawn scenes")
    for row in rows:
        scores = [f"{row['columns'][column]['miou']:.1f}" for column in COLUMNS]
        way = _way(row)
        place = f"{row['timestep']:g}"
        seconds = f"{row['seconds_per_image']:.3f}"
        table.add_row(way.grounder, place, way.words, *scores, seconds)
    console.print(table)


def _way(row: dict) -> Way:
    return Way(row["grounder"], row["inversion_steps"], row["samples"], row.get("guided", 0))


def plot(rows: list[dict], path: Path) -> None:
    """Draw a group of bars per row: seen and unseen, one and two objects."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.75 * len(rows)), layout="constrained")
    axes = figure.add_subplot(xlabel="mIoU", xlim=(0, 100))
    colors = ("#4477aa", "#ee6677", "#88aacc", "#ffaabb")
    for number, (column, color) in enumerate(zip(COLUMNS, colors, strict=True)):
        places = [row + 0.19 * (number - 1.5) for row in range(len(rows))]
        values = [row["columns"][column]["miou"] for row in rows]
        axes.barh(places, values, height=0.18, color=color, label=column.replace("_", ", "))
        for place, value in zip(places, values, strict=True):
            axes.annotate(f" {value:.1f}", (value, place), va="center", fontsize=7)
    ways = [_way(row).words for row in rows]
    names = [f"t = {r['timestep']:g}, {w}" for r, w in zip(rows, ways, strict=True)]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and plot; what is in ``--out`` already is not measured again."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--grounder", nargs="+", default=["clipart"], help="grounder folders, or clipart")
    add("--scenes", type=int, default=125, help="scenes of each of four columns")
    add("--samples", type=int, nargs="+", default=[1], help="draws of the noise, averaged")
    add("--inversion-steps", type=int, nargs="*", default=[], help="invert, in so many steps")
    add("--guided", type=int, nargs="*", default=[], help="filter masks along edges, radius")
    add("--out", type=Path, default=Path("runs/measure_grounder.json"))
    args = parser.parse_args(argv)
    return run_tool("measure_grounder", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Do what the arguments ask for.

    Raises:
        FileNotFoundError: If there is no such grounder.
        ValueError: If a number is too small.
    """
    for option, values, least in (
        ("--scenes", [args.scenes], 1),
        ("--samples", args.samples, 1),
        ("--inversion-steps", args.inversion_steps, 0),
        ("--guided", args.guided, 0),
    ):
        if min(values, default=least) < least:
            raise ValueError(f"{option} must be >= {least}, got {' '.join(map(str, values))}")
    for grounder in args.grounder:  # before the first is measured for minutes
        folder_digest(grounder)
    noise = [(0, samples) for samples in args.samples]
    inversion = [(steps, 1) for steps in args.inversion_steps]
    guided = [(0, 1, radius) for radius in args.guided]
    ways = [Way(g, *rest) for g in args.grounder for rest in noise + inversion + guided]
    rows = compare(ways, args.scenes, args.out)
    plot(rows, args.out.with_suffix(".png"))
    show(rows, Console(width=120))


if __name__ == "__main__":
    sys.exit(main())
