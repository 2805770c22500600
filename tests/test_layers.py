"""Who may import whom (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

import ovseg

ROOT = Path(ovseg.__file__).parent
PACKAGES = ("backbones", "grounders", "annotators", "segmenters", "data", "modules", "callbacks")
OPEN = {"types", "base"}
ALLOWED = {
    "types": set(),
    "base": OPEN,
    "maths": OPEN | {"maths"},
    "backbones": OPEN | {"backbones"},
    "grounders": OPEN | {"grounders"},
    "folder": OPEN | {"folder"},  # what a stage writes and a later one loads
    "annotators": OPEN | {"annotators", "folder"},
    "segmenters": OPEN | {"maths", "segmenters"},
    "data": OPEN | {"data"},
    "modules": OPEN | {"maths", "folder", "modules"},
    "clipart": OPEN | {"clipart"},
    "report": OPEN | {"maths", "report"},
    "callbacks": OPEN | {"maths", "data", "report", "callbacks"},
    "pipeline": OPEN | {"backbones", "grounders", "annotators", "folder", "report", "pipeline"},
}
LIGHTNING = ("data", "modules", "callbacks", "cli", "quickstart")
TRANSFORMERS = (
    "annotators",
    "backbones",
    "segmenters.transformers",
    "clipart.training",
    "pretrained",
    "checkpoint",
    "data.prompts_language",
)
MATHS = ("losses", "losses_segmentation", "metrics", "controls", "augment", "augment_mmseg")
MATHS += ("inference", "optim", "protocol", "results", "results_grounding")
MMSEG = ("segmenters.mmseg", "annotators.mmseg", "data.real", "metrics", "augment_mmseg")


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__")
        names[name.rstrip(".")] = path
    return names


def layer_of(name: str) -> str:
    """Return the layer of a module inside ovseg, "top" if it may import everything."""
    package, _, rest = name.partition(".")
    types = ("structures", "vocabulary", "errors", "embedded", "hub", "pretrained", "kept")
    if name in ("", *types, "photos", "seeded", "tuples"):
        return "types"
    if rest == "base" or name in ("quality", "checkpoint"):
        return "base"
    if name in MATHS:
        return "maths"
    if name in ("grounders.folder", "grounders.card", "grounders.partner", "segmenters.folder"):
        return "folder"
    if name.startswith("clipart.training"):
        return "top"
    return package if package in ALLOWED else "top"


def imports_of(path: Path) -> set[str]:
    """Return what a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", [n for n in modules() if layer_of(n) != "top" and n])
def test_imports_only_what_lies_below(name):
    known = modules()
    ours = {i.removeprefix("ovseg.") for i in imports_of(known[name]) if i.startswith("ovseg.")}
    layers = {layer_of(module): module for module in ours if module in known and module}
    wrong = {m for layer, m in layers.items() if layer not in ALLOWED[layer_of(name)]}
    wrong -= {package for package in PACKAGES if package in wrong}  # a bare package is empty
    assert not wrong, f"{name} ({layer_of(name)}) must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize(
    ("libraries", "places"),
    [
        (("lightning", "pytorch_lightning"), LIGHTNING),
        (("mmseg", "mmcv", "mmengine"), MMSEG),
        (("transformers",), TRANSFORMERS),
    ],
)
def test_who_may_use_which_library(libraries, places):
    users = {
        name
        for name, path in modules().items()
        if {i.partition(".")[0] for i in imports_of(path)} & set(libraries)
    }
    wrong = {n for n in users if not n.startswith(places)}
    assert not wrong, f"{libraries[0]} must not be imported by {', '.join(sorted(wrong))}"
    assert users, "the walk sees no imports at all"


def test_transformers_is_imported_when_it_is_needed():
    early = {
        name
        for name, path in modules().items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and ast.unparse(node).split()[1].partition(".")[0] == "transformers"
    }
    late = {n for n in early if not n.startswith("clipart.training")}
    assert not late, f"import transformers inside functions: {', '.join(sorted(late))}"


def test_no_file_is_long():
    long = {name: count for name, p in modules().items() if (count := _lines(p)) > 300}
    assert not long, f"split these files: {long}"


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())
