from io import BytesIO

import numpy as np

from ovseg.protocol import Protocol, Published
from ovseg.results import comparable, pack_images, table

ROWS = (
    Published(method="A", training="real", seen=60.0, unseen=30, harmonic=40, source="P"),
    Published(
        method="B", training="real", seen=1, unseen=2, harmonic=1.3, source="P", incomparable="why"
    ),
)


HEAD = "| method | training data | S | U | H |\n|---|---|---|---|---|\n"
APART = "\n## Not comparable\n| method | why not | S | U | H |\n|---|---|---|---|---|\n"


def protocol(*rows: Published, **more) -> Protocol:
    choices = {"name": "p", "title": "T", "vocabulary": "voc", "split": "1"}
    return Protocol(**choices, published=rows, **more)


def ours(images: int) -> dict:
    return {"val": {"seen": 1, "unseen": 2, "harmonic": 3, "images": images}}


def test_the_table_has_comparable_rows_above_ours_and_the_others_below():
    scores = {"val": {"seen": 70.04, "unseen": float("nan"), "harmonic": float("nan")}}
    scores["val"]["images"] = 1449
    text = table(protocol(*ROWS), scores, "Net", "shards", bound=False)
    assert text.startswith(
        "# T (p)\n\nmIoU in percent.\n"
        f"\n## val, 1,449 images\n{HEAD}"
        "| A | real | 60.0 | 30.0 | 40.0 |\n"
        "| **Net** | shards | 70.0 | – | – |\n"
        "\nOthers' figures: P; "
    )
    assert f"{APART}| B | why | 1.0 | 2.0 | 1.3 |\n| SPNet | another protocol" in text


def test_rows_of_every_other_protocol_are_not_comparable():
    """SPNet to Li et al., E in both tables of the paper: 8 rows each."""
    clipart = table(Protocol.load("clipart_1"), ours(100), "Net", "shards", bound=False)
    _, _, apart = clipart.partition("## Not comparable")
    assert "| SPNet | another protocol, voc_zs3: PASCAL VOC 2012, the standard" in apart
    assert apart.count("another protocol, voc_zs3:") == 8 == apart.count("protocol, coco_65_15:")
    standard = table(Protocol.load("voc_zs3"), ours(1449), "Net", "shards", bound=False)
    beside, _, apart = standard.partition("## Not comparable")
    methods = ["SPNet", "ZegFormer", *(f"Li et al., {letter}" for letter in "ABCDE")]
    assert all(f"| {method} |" in beside for method in methods)
    assert "| STRICT | transductive" in apart and "| SPNet | another protocol, coco_65_15" in apart
    assert apart.count("| SPNet |") == 1


def test_a_part_of_the_test_images_and_a_bound_have_nobody_beside_them():
    choices = protocol(*ROWS, test_images=1449)
    assert comparable(choices, 1449, bound=False) == ([ROWS[0]], "")
    for images, bound, reason in (
        (17, False, "of 1,449 test images, this test is of 17"),
        (1449, True, "this test's training used masks of unseen classes"),
    ):
        text = table(choices, ours(images), "Net", "shards", bound)
        beside, _, apart = text.partition("## Not comparable")
        assert "| A |" not in beside and f"| A | {reason} | 60.0" in apart
        assert "| B | why | 1.0" in apart
    assert comparable(protocol(*ROWS), 17, bound=False)[0] == [ROWS[0]]  # nobody fixed a number


def test_areas_are_read_back_without_pickle():
    areas = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    content = pack_images({"val": (np.array([3, 5]), areas)}, [0, 1], [2])
    with np.load(BytesIO(content), allow_pickle=False) as arrays:
        assert arrays["val/indices"].tolist() == [3, 5]
        assert np.array_equal(arrays["val/areas"], areas)
        assert (arrays["seen"].tolist(), arrays["unseen"].tolist()) == ([0, 1], [2])
