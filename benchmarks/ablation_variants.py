"""The questions of `ablations.py`, their variants, and what the paper found."""

from __future__ import annotations

from typing import Any, NamedTuple

TAP_STEPS = (1, 2, 4, 8)
"""Steps whose latents stage 1 keeps, counted from the clean end of eight."""

FIVE = ["car", "bird", "tree", "house", "star"]
TEN = [*FIVE, "fish", "cactus", "cake", "hammer", "chair"]

DATA: dict[str, dict] = {
    "annotated": {},
    "five_classes": {"prompts.init_args.classes": FIVE},
    "ten_classes": {"prompts.init_args.classes": TEN},
    "one_object": {"prompts.init_args.objects": {1: 1}},
    "two_objects": {"prompts.init_args.objects": {2: 1}},
    "largest_piece": {"annotator.class_path": "ablation_annotator.LargestPiece"},
}
"""Training sets, each as large as the default, and what each changes of its stream."""

OWN_LABELS = "own_labels"
"""A training set of all names, labelled by the default module."""


OURS = ("probe",)


class Variant(NamedTuple):
    """One training and its test.

    Attributes:
        name: Its folder; the same name in another question is the same run.
        what: For people.
        changes: Values at dotted keys of 2_grounding.yaml; "data" names a training set.
        modules: Grounding modules that it is a variant of.
    """

    name: str
    what: str
    changes: dict[str, Any]
    modules: tuple[str, ...] = ("probe", "fusion")


class Question(NamedTuple):
    """Variants to read side by side, and the paper's finding."""

    title: str
    paper: str
    variants: list[Variant]


def default(what: str) -> Variant:
    """Return the module as it is shipped."""
    return Variant("default", what, {})


def ours(name: str, what: str, **arguments: Any) -> Variant:
    """Return a variant of our module's own arguments."""
    prefix = "model.init_args.grounder.init_args."
    return Variant(name, what, {prefix + k: v for k, v in arguments.items()}, OURS)


def backbone(name: str, what: str, **arguments: Any) -> Variant:
    """Return a variant of what is read from the backbone."""
    prefix = "data.init_args.backbone.init_args."
    return Variant(name, what, {prefix + k: v for k, v in arguments.items()})


def training(name: str, what: str, **arguments: Any) -> Variant:
    """Return a variant of how the module is trained."""
    return Variant(name, what, {f"model.init_args.{k}": v for k, v in arguments.items()})


def images(count: int) -> Variant:
    """Return a variant with fewer training images."""
    limit = {"data.init_args.train.init_args.limit": count}
    return Variant(f"images_{count}", f"{count}", limit)


QUESTIONS = [
    Question(
        "What each part of our module is worth",
        "not the paper's",
        [
            default("as shipped"),
            ours("no_probes", "no probes", probes=False),
            ours("no_text", "no name embedding in the head", text=False),
            ours("no_others", "names do not see each other's probes", others=False),
            ours("no_prototypes", "no second mask from prototypes", prototypes=False),
            ours("no_dropout", "name embedding never hidden in training", text_dropout=0.0),
            ours("all_channels", "no channels of the map hidden in training", dropout=0.0),
            ours("wide", "coarse maps as wide as fine ones", widths=[112, 112, 112]),
            training("dice", "with Dice loss", dice=1.0),
            training("negatives", "with names that are not there, to be left empty", negatives=1),
            Variant(
                OWN_LABELS,
                "trained again on its own labels of all names",
                {"data": OWN_LABELS},
                OURS,
            ),
        ],
    ),
    Question(
        "Number of seen classes",
        "more help: 72.4 with 5, 73.3 with 20, 76.8 with 65 (COCO, one unseen object)",
        [
            Variant("five_classes", "5", {"data": "five_classes"}),
            Variant("ten_classes", "10", {"data": "ten_classes"}),
            default("15"),
        ],
    ),
    Question(
        "Prompted names that the annotator did not find",
        "no loss 83.2 and 57.9, empty target 71.2 and 44.2 (one and two unseen objects)",
        [default("no loss"), training("missed_empty", "an empty target", empty_missed=True)],
    ),
    Question(
        "Tapped step of 8, counted from the clean end",
        "of 50, one seen: 90.5 at 1, 90.8 at 5, 87.7 at 30, 60.3 at 50; "
        "two unseen: 57.5, 59, 53.5, 13",
        [
            default("1"),
            backbone("step_2", "2", tap_steps=[2]),
            backbone("step_4", "4", tap_steps=[4]),
            backbone("step_8", "8 (pure noise)", tap_steps=[8]),
            backbone("steps_1_4", "1 and 4 together", tap_steps=[1, 4]),
        ],
    ),
    Question(
        "Branches of the guided denoiser",
        "reads the conditional branch alone",
        [default("conditional"), backbone("both_branches", "both", both_branches=True)],
    ),
    Question(
        "Where a name is embedded",
        "a sentence of its own; others found the image's prompt better by about 5 on unseen names",
        [
            default("a sentence of its own"),
            backbone("names_in_prompt", "the image's prompt", names_in="prompt"),
        ],
    ),
    Question(
        "Objects per training image",
        "a quarter one, three quarters two",
        [
            Variant("one_object", "one", {"data": "one_object"}),
            Variant("two_objects", "two", {"data": "two_objects"}),
            default("a third one, two thirds two"),
        ],
    ),
    Question(
        "Target of a name",
        "the detector's top-1 instance; here an object is one instance, of several pieces",
        [
            default("union of its pieces"),
            Variant("largest_piece", "its largest piece", {"data": "largest_piece"}),
        ],
    ),
    Question(
        "Training images",
        "40,000 and 110,000; fewer were not tried",
        [images(128), images(256), images(512), default("as shipped")],
    ),
]
