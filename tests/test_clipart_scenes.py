"""The drawn scenes and their captions."""

from collections import Counter

import numpy as np
import pytest

from ovseg.clipart.captions import caption, draw_scene
from ovseg.clipart.parts import SHAPES
from ovseg.clipart.scenes import COLORS, SIZE, compose, layout, nouns, render, rng
from ovseg.vocabulary import Vocabulary


def test_language_is_larger_than_the_benchmark():
    vocabulary = Vocabulary.load("clipart")
    assert len(nouns()) >= 40 and len(vocabulary.classes) == 20
    assert {c.name for c in vocabulary.classes} < set(nouns())
    used = {shape for shape, *_ in _parts()}
    assert used <= set(SHAPES)


def _parts():
    from importlib.resources import files

    import yaml

    data = yaml.safe_load((files("ovseg.clipart") / "nouns.yaml").read_text(encoding="utf-8"))
    return [
        part
        for members in data["families"].values()
        for noun in members.values()
        for part in noun["parts"]
    ]


def test_every_part_spans_four_pixels_at_the_smallest_scale():
    smallest = 0.22 * SIZE  # half-size in pixels
    thinnest = min(min(width, height) for _, _, _, width, height, *_ in _parts())
    assert thinnest * smallest >= 4


@pytest.mark.parametrize("split", ["1", "2", "3"])
def test_splits_hold_four_unseen_nouns_with_a_sibling_and_one_without(split):
    vocabulary = Vocabulary.load("clipart", split)
    assert len(vocabulary.seen) == 15 and len(vocabulary.unseen) == 5
    seen = {nouns()[vocabulary[i].name].family for i in vocabulary.seen}
    siblings = [nouns()[vocabulary[i].name].family in seen for i in vocabulary.unseen]
    assert sum(siblings) == 4


def test_scenes_are_a_function_of_seed_and_index():
    first, second = render(draw_scene(3, 5)), render(draw_scene(3, 5))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], render(draw_scene(3, 6))[0])
    assert not np.array_equal(first[0], render(draw_scene(4, 5))[0])


@pytest.mark.parametrize("count, low, high", [(1, 0.30, 0.42), (2, 0.22, 0.30), (4, 0.22, 0.24)])
def test_sizes_and_distances(count, low, high):
    for index in range(200):
        placed = layout(rng(0, index), count)
        for n, (x, y, half) in enumerate(placed):
            assert low <= half <= high
            assert half - 1e-9 <= x <= 1 - half + 1e-9 and half - 1e-9 <= y <= 1 - half + 1e-9
            for other_x, other_y, other in placed[:n]:
                limit = half + other if count == 2 else 0.4  # quarters may touch at corners
                assert np.hypot(x - other_x, y - other_y) >= limit - 1e-9


def test_label_map_is_exact():
    """A square of known corners covers exactly the pixels whose centres it holds."""
    from ovseg.clipart.scenes import Scene, Thing

    color = ((255, 0, 0),) * 3
    thing = Thing("cake", "red", 0.5, 0.5, 0.25, 0.0, False, color)
    scene = Scene((thing,), "plain", "white", ((255, 255, 255),) * 2, 0.0)
    image, ids = render(scene)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and ids.dtype == np.uint8
    # the lowest tier: centre (0, 0.4), 1.85 x 0.8 half-sizes of 16 px
    left, right = 32 - 0.925 * 16, 32 + 0.925 * 16
    top, bottom = 32 + 0.0 * 16, 32 + 0.8 * 16
    inner = ids[int(top) + 1 : int(bottom) - 1, int(left) + 1 : int(right)]
    assert (inner == 1).all()
    assert (ids[int(bottom) + 2 :] == 0).all() and (ids[:, : int(left) - 1] == 0).all()
    assert (image[ids == 0][:, 1] > 120).all()


def test_objects_stand_out_from_the_background():
    for index in range(100):
        scene = compose(rng(1, index), ["house", "fish"])
        for thing in scene.things:
            for color in thing.rgb:
                for back in scene.rgb:
                    assert max(abs(a - b) for a, b in zip(color, back, strict=True)) >= 25


def test_colours_do_not_depend_on_the_noun():
    """The same generator state gives the same colours whatever is drawn."""
    for index in range(20):
        one = compose(rng(2, index), ["house"]).things[0]
        other = compose(rng(2, index), ["fish"]).things[0]
        assert one.rgb == other.rgb


def test_captions_name_what_is_there_in_an_order_that_tells_nothing():
    first_is_left = Counter()
    names = {n.name: n.family for n in nouns().values()}
    for index in range(1500):
        r = rng(7, index)
        scene = compose(r, ["house", "fish"])
        text = caption(r, scene)
        assert text.startswith(("a photo of ", "a photograph of ", "a picture of "))
        if "house" not in text or "fish" not in text or " of a house and" not in text + " and":
            continue
        if any(w in text for w in ("left", "right", "above", "below")):
            continue
        house, fish = scene.things
        first = house if text.index("house") < text.index("fish") else fish
        first_is_left[first.x < (fish if first is house else house).x] += 1
    assert set(names) and sum(first_is_left.values()) > 100
    share = first_is_left[True] / sum(first_is_left.values())
    assert 0.4 < share < 0.6


def test_captions_tell_the_truth_about_colour_relation_and_count():
    seen = Counter()
    for index in range(3000):
        scene = draw_scene(11, index)
        text = caption(rng(12, index), scene)
        words = text.replace(",", "").split()
        for color in COLORS:
            if color in words and f"{color} background" not in text:
                assert color in {t.color for t in scene.things}
                seen["colour"] += 1
        if " two " in f" {text} ":
            assert len(scene.things) == 2 and len({t.noun for t in scene.things}) == 1
            seen["count"] += 1
        if "to the left of" in text:
            seen["left"] += 1
            assert len(scene.things) == 2
            by_name = {t.noun: t for t in scene.things}
            left, right = text.split("to the left of")
            a = [t for n, t in by_name.items() if n in left.split()]
            b = [t for n, t in by_name.items() if n in right.split()]
            if len(a) == 1 and len(b) == 1 and a[0] is not b[0]:
                assert a[0].x < b[0].x
    assert min(seen["colour"], seen["count"], seen["left"]) > 20
