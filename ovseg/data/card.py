"""The card of a dataset: what is in it, what made it, how it is read back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ovseg.data.about import about

LICENCES = (
    "apache-2.0",
    "bigscience-openrail-m",
    "cc-by-4.0",
    "cc0-1.0",
    "creativeml-openrail-m",
    "mit",
    "openrail",
    "openrail++",
)
"""Licences of text-to-image models that the Hub knows; any other is "other" with its name."""

SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
MADE = (
    "A text-to-image model made the images and another model the masks, no human; the licence is "
    "that of the text-to-image model."
)
SEPARATORS = re.compile(r"(agreement of | and | \+ |, )")
"""What stands between the sources of an annotator that is made of several."""
TAKEN = "Images and masks are those of a labelled dataset, whose licence is not recorded here."
LABELLED = (
    "A model made the masks, or those that the images did not come with; the licence of the images "
    "is not recorded here."
)
PAIRS = 20
"""Pairs of classes that are listed."""

TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ samples }} images with masks, written by ovseg {{ version }}. {{ origin }}

| | |
|---|---|
{% for key, value in facts.items() -%}
| {{ key }} | {{ value }} |
{% endfor %}
## Classes
*Prompted* counts the images whose prompt names the class, *found* those in which the annotator
found it. One that was not found is not in the mask, even if it is in the image.{{ rejected }}

| class | prompted | found |
|---|---|---|
{% for key, counts in classes -%}
| {{ key }} | {{ counts.prompted }} | {{ counts.found }} |
{% endfor %}
{% if pairs -%}
## Pairs
{{ pairs_title }}

| classes | prompted | both found |
|---|---|---|
{% for key, counts in pairs -%}
| {{ key }} | {{ counts.prompted }} | {{ counts.found }} |
{% endfor %}
{% endif -%}
## Reading
`mask.png` holds class ids, 0 background and 255 ignore; `dataset.json` has their keys, in order.

```python
from ovseg.data.shards import ShardStream
from ovseg.vocabulary import Vocabulary

stream = ShardStream("FOLDER")
stream.bind(Vocabulary.load("{{ vocabulary }}", "{{ split }}"))  # or the path of its YAML file
batch = stream[[0, 1]]  # batch.images, batch.labels, batch.requests
```

```python
import io, json
import webdataset
from PIL import Image

for sample in webdataset.WebDataset("FOLDER/{{ shards_name }}", shardshuffle=False):
    image = Image.open(io.BytesIO(sample["image.png"]))
    mask = Image.open(io.BytesIO(sample["mask.png"]))
    facts = json.loads(sample["json"])
```

## Shards
<details>
<summary>Samples, bytes and SHA-256 of {{ shards | length }} files</summary>

| file | samples | bytes | SHA-256 |
|---|---|---|---|
{% for name, facts in shards.items() -%}
| {{ name }} | {{ facts.samples }} | {{ facts.bytes }} | {{ facts.sha256 }} |
{% endfor %}
</details>
"""


def make_card(manifest: dict) -> str:
    """Return the card of a complete dataset: Markdown with the front matter that the Hub reads.

    Args:
        manifest: `dataset.json`.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    manifest = {**manifest, **without_folders(manifest)}
    counts, words, shards = manifest["counts"], manifest["vocabulary"], manifest["shards"]
    title = f"Images and masks, {words['name']}"
    data = DatasetCardData(
        **licence_of(manifest),
        task_categories=["image-segmentation"],
        size_categories=size_category(counts["samples"]),
        pretty_name=title,
        tags=["ovseg", "webdataset"],
        configs=[{"config_name": "default", "data_files": "shard-*.tar"}],
    )
    facts = about(manifest, dict(enumerate(words["keys"])), (len(shards), len(shards)))
    pairs = sorted(counts["pairs"].items(), key=lambda item: -item[1]["prompted"])
    all_of_them = f"The {PAIRS} most frequent of {len(pairs)}." if len(pairs) > PAIRS else "All."
    judged = manifest["yield"]["rejected"]
    card = DatasetCard.from_template(
        data,
        template_str=TEMPLATE,
        title=plain(title),
        samples=counts["samples"],
        version=manifest["environment"].get("versions", {}).get("ovseg", ""),
        origin=_origin(manifest),
        facts={key: plain(value) for key, value in facts.items()},
        rejected=f" {judged} images more were made and rejected by the filter." if judged else "",
        classes=[(plain(key), numbers) for key, numbers in counts["classes"].items()],
        pairs_title=all_of_them,
        pairs=[(plain(key), numbers) for key, numbers in pairs[:PAIRS]],
        vocabulary=_quoted(words["name"]),
        split=_quoted(words["split"]),
        shards_name=_braces(list(shards)),
        shards=shards,
    )
    return str(card)


def licence_of(manifest: Mapping) -> dict[str, str]:
    """Return what the front matter says of a dataset's licence, which is that of its images."""
    made = _origin(manifest) is MADE
    return _licence((manifest["backbone"] or {}).get("licence") if made else None)


def _origin(manifest: Mapping) -> str:
    """Return the sentence about who made images and masks."""
    if "images" in manifest["annotator"]:
        return TAKEN
    return LABELLED if manifest.get("images") else MADE


def without_folders(manifest: Mapping) -> dict[str, dict]:
    """Return backbone and annotator without the folders of the machine that their files were in."""
    backbone, annotator = manifest["backbone"], manifest["annotator"]
    if backbone is not None and not backbone.get("revision"):
        backbone = {**backbone, "model": Path(str(backbone.get("model"))).name}
    parts = SEPARATORS.split(str(annotator.get("source")))
    source = "".join(_without_folder(part) for part in parts)
    return {"backbone": backbone, "annotator": {**annotator, "source": source}}


def _without_folder(source: str) -> str:
    """Return "kind:name" of what may be a folder; a Hub id, owner/name, stays as it is."""
    kind, colon, place = source.rpartition(":")
    near = place.count("/") <= 1 and place[:1] not in ("/", ".", "~")
    return kind + colon + (place if near else place.rstrip("/").rpartition("/")[2])


def plain(text: object) -> str:
    """Return text on one line that Markdown, in a table too, shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|~&])", r"\\\1", " ".join(str(text).split()))


def code(text: object) -> str:
    """Return text on one line as Markdown's code, which ends at no backtick of its own."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39))}`"


def size_category(samples: int) -> str:
    """Return the Hub's word for a number of samples, such as "1K<n<10K"."""
    place = len(str(samples)) - 4
    if place < 0:
        return f"n<{SIZES[0]}"
    return f"{SIZES[place]}<n<{SIZES[place + 1]}"


def _licence(name: str | None) -> dict[str, str]:
    """Return what the front matter says of a licence."""
    if name is None:
        return {"license": "unknown"}
    if name.lower() in LICENCES:
        return {"license": name.lower()}
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-").removeprefix("other-")
    return {"license": "other", "license_name": slug}


def _quoted(text: str) -> str:
    """Return what stands between double quotes in Python."""
    return text.encode("unicode_escape").decode().replace('"', '\\"')


def _braces(names: list[str]) -> str:
    """Return file names as webdataset abbreviates them."""
    first, last = (
        name.removeprefix("shard-").removesuffix(".tar") for name in (names[0], names[-1])
    )
    return names[0] if first == last else f"shard-{{{first}..{last}}}.tar"
