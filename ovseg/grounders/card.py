"""The model card of a grounder folder: what it is, how to use it, and what was measured."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.embedded import EMBEDDED
from ovseg.hub import is_hub_id
from ovseg.kept import RESULTS, Fields, check_values
from ovseg.pretrained import read_json
from ovseg.vocabulary import EVERY

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

A grounding module of ovseg {{ version }}: from the features of a frozen text-to-image model it says
where each name is, in images that the model makes and in photographs.

| | |
|---|---|
{% for key, value in facts.items() -%}
| {{ key }} | {{ value }} |
{% endfor %}
## Use
```python
from ovseg import GroundedDiffusion
model = GroundedDiffusion.from_pretrained("FOLDER_OR_HUB_ID")
result = model({{ prompt }}, names={{ names }})
```
{% if not portable %}
The backbone was not read from the Hub. Where its files lie elsewhere, pass a backbone made from
them: `from_pretrained(..., backbone=...)`.
{% endif %}
## Numbers
{% if rows -%}
By `ovseg test`, in percent. mIoU is the mean over classes of the IoU with the masks of the test
stream; *foreground* gives every name the union of all true masks, *ceiling* is the true masks
through the feature grid. *Presence* is the area under the ROC curve of names that are in the image
against names that are not; 50 is chance.

| stream | images | mIoU | foreground | ceiling | presence |
|---|---|---|---|---|---|
{% for row in rows -%}
| {{ row | join(" | ") }} |
{% endfor %}
{%- else -%}
Not measured.
{% endif %}
"""


def _number(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _control(value: Any) -> bool:
    return isinstance(value, dict) and _number(value.get("miou"))


_SCORES: Fields = {
    "images": ("a whole number", lambda value: type(value) is int),
    "miou": ("a number or null", _number),
    "presence": ("a number or null", _number),
    "foreground": ("scores by name, miou a number or null", _control),
    "ceiling": ("scores by name, miou a number or null", _control),
}


def make_card(config: dict[str, Any], results: dict[str, dict] | None = None) -> ModelCard:
    """Make the card of a grounder.

    Args:
        config: Content of its ``config.json``.
        results: What `read_results` returned; None if it was not measured.
    """
    from huggingface_hub import ModelCard, ModelCardData

    backbone, trained = config.get("backbone") or {}, config.get("vocabulary") or {}
    model = backbone.get("model", "an unnamed model")
    title = f"{config['class_path'].rpartition('.')[2]} on {model}"
    on_hub = is_hub_id(model) and bool(backbone.get("revision"))  # a folder has no commit
    data = ModelCardData(
        library_name="ovseg",
        pipeline_tag="image-segmentation",
        tags=["ovseg", "open-vocabulary", "text-to-image", "diffusion"],
        base_model=model if on_hub else None,
        metrics=["mean_iou"] if results else None,
        model_name=title if results else None,
        eval_results=_eval_results(results or {}, trained) or None,
    )
    names = trained.get("seen", [])[:2] or ["house"]
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        title=title,
        version=config.get("ovseg", ""),
        facts=_facts(config, backbone, trained),
        prompt=json.dumps("a photo of " + " and ".join(f"the {name}" for name in names)),
        names=json.dumps(names),
        portable=on_hub or model == EMBEDDED,
        rows=[_row(stream, scores) for stream, scores in (results or {}).items()],
    )


def read_results(path: str | Path, weights: str | None = None) -> dict[str, dict]:
    """Read the ``results.json`` that `ovseg test` of a grounding module wrote.

    Args:
        path: The file.
        weights: `weights_digest` of the grounder whose results they must be; None for any.

    Returns:
        The scores of each stream.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, or does not say that they are that grounder's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no results {path}: `ovseg test` of a grounding module writes {RESULTS} into "
            "trainer.default_root_dir"
        )
    results = read_json(path)
    streams = list(results.values()) if isinstance(results, dict) else []
    if not streams or not all(
        isinstance(s, dict) and {"miou", "images"} <= set(s) for s in streams
    ):
        raise ValueError(
            f"{path} holds no results of a grounding module: every stream must have miou and images"
        )
    for stream, scores in results.items():
        check_values(f"{path}, {stream}", scores, _SCORES)
        if weights is None or (whose := scores.get("weights")) == weights:
            continue
        known = "do not say of which grounder" if whose is None else "are of another grounder"
        raise ValueError(
            f"the results in {path} {known}: give those of an `ovseg test` of this very one, with "
            "its weights and threshold as they are"
        )
    return results


def own_results(folder: Path, weights: str) -> dict[str, dict] | None:
    """Return the results in a grounder folder, which older folders do not say to be theirs.

    What cannot be read, or is of another grounder, is left out with a warning.

    Args:
        folder: The folder.
        weights: `weights_digest` of its grounder.
    """
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        results = read_results(path)
        told = any("weights" in scores for scores in results.values())
        return read_results(path, weights) if told else results
    except ValueError as error:
        warnings.warn(f"{error}; it is left out", stacklevel=3)
        return None


def _facts(config: dict, backbone: dict, trained: dict) -> dict[str, str]:
    """Return the rows of the card's table."""
    spec = config["feature_spec"]
    unknown = "not recorded"
    steps = unknown
    if "tap_steps" in backbone and "steps" in backbone:
        steps = f"{_list(backbone['tap_steps'])} of {backbone['steps']}, counted from the clean end"
    if "timesteps" in backbone:
        steps += f"; timesteps {_list(backbone['timesteps'])}"
    branches = spec.get("branches", 1)
    return {
        "grounder": f"`{config['class_path']}`, threshold {config['threshold']:g}",
        "backbone": f"`{backbone.get('class_path', unknown)}`",
        "model of the backbone": f"`{backbone.get('model', unknown)}`",
        "revision of the backbone": backbone.get("revision") or "none",
        "digest of the backbone": f"`{config['backbone_digest']}`",
        "licence of the backbone": backbone.get("licence") or unknown,
        "taps": _list([f"`{tap}`" for tap in spec["taps"]]),
        "tapped steps": steps,
        "guidance branches": "unconditional and conditional" if branches == 2 else "conditional",
        "vocabulary": trained.get("name", unknown),
        "split": trained.get("split", unknown),
        "seen classes": _list(trained.get("seen", [])) or unknown,
        "unseen classes": _list(trained.get("unseen", [])) or unknown,
        "learnt from masks of": _learnt(trained.get("trained_on", [])) or unknown,
        "done in its training that a protocol may rule out": _list(trained.get("practices", []))
        or "nothing",
    }


def _row(stream: str, scores: dict) -> list[str]:
    values = (
        scores["miou"],
        scores.get("foreground", {}).get("miou"),
        scores.get("ceiling", {}).get("miou"),
        scores.get("presence"),
    )
    return [stream, str(scores["images"]), *("–" if v is None else f"{v:.1f}" for v in values)]


def _eval_results(results: dict[str, dict], trained: dict) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    name, split = trained.get("name", "unknown"), trained.get("split", "unknown")
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=f"ovseg-{name}",
            dataset_name=f"{name}, split {split}, {stream}",
            dataset_config=f"split {split}",
            dataset_split=stream,
            metric_type="mean_iou",
            metric_name="mIoU",
            metric_value=scores["miou"],
        )
        for stream, scores in results.items()
        if scores["miou"] is not None
    ]


def _learnt(names: list[str]) -> str:
    """Return names of classes; those of something that does not say are not known."""
    return "" if EVERY in names else _list(names)


def _list(value: Any) -> str:
    items = value if isinstance(value, list | tuple) else [value]
    return ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in items)
