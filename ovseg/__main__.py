"""``python -m ovseg`` and the console script: a table of verbs, each imported when it is called.

`fit`, `validate`, `test` and `predict` are LightningCLI's own in subclass mode: a model and a data
class by their `class_path`, from any importable package, the working directory included.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import ovseg
from ovseg.errors import one_line

VERBS = {
    "fit": ("ovseg.cli:run", "train a grounding module or a segmenter"),
    "validate": ("ovseg.cli:run", "score on the validation streams"),
    "test": ("ovseg.cli:run", "score on the test streams and write results.json"),
    "predict": ("ovseg.cli:run", "write a stream of annotated samples as shards"),
    "status": ("ovseg.status:main", "how far a dataset is, and what was kept of it"),
    "refilter": ("ovseg.refilter:main", "another filter or threshold for a dataset, as another"),
    "segment": ("ovseg.segment:main", "masks of named things in photographs"),
    "prompts": ("ovseg.prompts_preview:main", "the prompts that a config asks for"),
    "names": ("ovseg.names:main", "a vocabulary's words: tokens, whether drawn, whether grounded"),
    "export": ("ovseg.export.command:main", "a dataset as VOC, COCO, YOLO, ADE or Hugging Face"),
    "compare": ("ovseg.compare:main", "two tests of segmenters: is the difference more than luck"),
    "check": ("ovseg.contract:main", "test that a backbone keeps its contract"),
    "quickstart": ("ovseg.quickstart:main", "all four stages on the embedded clip-art world"),
    "report": ("ovseg.dataset_report:main", "a page about a dataset, or a quickstart again"),
}


def usage() -> str:
    """Return the text of ``ovseg --help``."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {help_text}" for verb, (_, help_text) in VERBS.items()]
    return "\n".join(
        [
            "usage: ovseg VERB [ARGUMENTS]",
            "",
            "Text-to-image diffusion models as makers of labelled segmentation data.",
            "",
            "verbs:",
            *lines,
            "",
            "  ovseg VERB --help               arguments of a verb",
            "  ovseg fit --config CONFIG.yaml  configs may be layered: -c a.yaml -c b.yaml",
            "  ovseg --version",
            "",
            "JSONARGPARSE_DEBUG=true shows the traceback behind an error's line.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Arguments with the verb first; those of the process by default.

    Returns:
        The exit code: 0, or 2 after an error that is the user's to mend (one line on stderr).
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(ovseg.__version__)
        return 0
    verb = argv[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.0)
        return _fail(f"ovseg: no verb {verb!r}; did you mean {near[0]!r}? (ovseg --help lists all)")
    try:
        return _call(verb, argv) or 0
    except Exception as error:
        if os.environ.get("JSONARGPARSE_DEBUG", "").lower() == "true":
            raise
        line = one_line(error)
        if line is None:  # not the user's to mend
            raise
        return _fail(f"ovseg {verb}: {line}")


def _call(verb: str, argv: list[str]) -> int | None:
    """Import a verb's function and call it with what follows the verb."""
    if not {"", os.getcwd()} & set(sys.path):  # a console script leaves it out
        sys.path.insert(0, os.getcwd())
    module, _, function = VERBS[verb][0].partition(":")
    target = getattr(importlib.import_module(module), function)
    return target(argv if function == "run" else argv[1:])


def _fail(line: str) -> int:
    print(line, file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
