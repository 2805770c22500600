"""Grounding of pictures that no generator made: drawn scenes, whose masks are exact.

    python tools/measure_grounder.py --out runs/measure_grounder.json

The scenes go through the autoencoder, are noised to the tapped step, and the grounder is asked for
the names that they show, seen or unseen: no annotator has a say. One and two objects, a column each
for images of seen and of unseen names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from ovseg import GroundedDiffusion
from ovseg.clipart.stream import DrawnScenes
from ovseg.data.prompts import fill
from ovseg.grounders.folder import read_config
from ovseg.metrics import GroundingIoU
from ovseg.structures import Entities, Request, entity_targets
from ovseg.vocabulary import Vocabulary

SEED, NOISE = 700_000, 1_000_000
PROMPT = "a photo of {objects}"


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
    model: GroundedDiffusion, vocabulary: Vocabulary, scenes: int, samples: int = 1
) -> dict[str, dict]:
    """Score columns of scenes whose names are all seen, or all unseen."""
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
                targets, pixels = entity_targets(batch.labels[rows], entities.class_ids)
                metric.update(masks, targets, pixels, entities.class_ids, entities.valid)
                used += len(rows)
                bar.update(len(rows))
            bar.close()
            scores = metric.compute()
            result[f"{word}_{side}"] = {"miou": float(scores["miou"]), "images": used}
    return result


def main() -> None:
    """Measure one grounder folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--grounder", default="clipart", help="grounder folder, or clipart")
    parser.add_argument("--scenes", type=int, default=125, help="scenes of each of four columns")
    parser.add_argument("--samples", type=int, default=1, help="draws of the noise, averaged")
    parser.add_argument("--out", type=Path, default=Path("runs/measure_grounder.json"))
    args = parser.parse_args()
    split = (read_config(args.grounder).get("vocabulary") or {}).get("split", "1")
    model = GroundedDiffusion.from_pretrained(args.grounder)
    result = measure(model, Vocabulary.load("clipart", split), args.scenes, args.samples)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
