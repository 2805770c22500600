from io import BytesIO

import numpy as np

from ovseg.protocol import Protocol, Published
from ovseg.results import pack_images, table

ROWS = (
    Published(method="A", training="real", seen=60.0, unseen=30, harmonic=40, source="P"),
    Published(
        method="B", training="real", seen=1, unseen=2, harmonic=1.3, source="P", incomparable="why"
    ),
)


def protocol(*rows: Published) -> Protocol:
    choices = {"name": "p", "title": "T", "vocabulary": "voc", "split": "1"}
    return Protocol(**choices, published=rows)


def test_the_table_has_comparable_rows_above_ours_and_the_others_below():
    scores = {"val": {"seen": 70.04, "unseen": float("nan"), "harmonic": float("nan")}}
    assert table(protocol(*ROWS), scores, "Net", "shards") == (
        "# T (p)\n\nmIoU in percent.\n"
        "\n## val\n| method | training data | S | U | H |\n|---|---|---|---|---|\n"
        "| A | real | 60.0 | 30.0 | 40.0 |\n"
        "| **Net** | shards | 70.0 | – | – |\n"
        "\nOthers' figures: P.\n"
        "\n## Not comparable\n| method | why not | S | U | H |\n|---|---|---|---|---|\n"
        "| B | why | 1.0 | 2.0 | 1.3 |\n"
    )


def test_without_rows_of_others_there_is_ours():
    text = table(protocol(), {"x": {"seen": 1, "unseen": 2, "harmonic": 3}}, "Net", "shards")
    assert text.endswith("| **Net** | shards | 1.0 | 2.0 | 3.0 |\n")


def test_areas_are_read_back_without_pickle():
    areas = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    content = pack_images({"val": (np.array([3, 5]), areas)}, [0, 1], [2])
    with np.load(BytesIO(content), allow_pickle=False) as arrays:
        assert arrays["val/indices"].tolist() == [3, 5]
        assert np.array_equal(arrays["val/areas"], areas)
        assert (arrays["seen"].tolist(), arrays["unseen"].tolist()) == ([0, 1], [2])
