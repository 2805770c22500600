"""ovseg.clipart.training.gates, on arrays whose answers are known by hand."""

import numpy as np
import pytest

from ovseg.clipart.scenes import COLORS, tones
from ovseg.clipart.training.gates import (
    closest_pairs,
    color_of,
    explained_share,
    nearest,
    ridge_retrieval,
)


def test_explained_share_is_the_projection_on_the_seen_names():
    # the rows sum to zero, so that centring changes nothing
    rows = np.array([[1.0, 0, 0], [-1, 0, 0], [0.6, 0.8, 0], [-0.6, -0.8, 0]])
    assert explained_share(rows, [0, 1], [2, 3]) == pytest.approx(0.36)
    assert explained_share(rows, [0, 1, 2], [3]) == pytest.approx(1.0)


def test_closest_pairs_by_cosine():
    rows = np.array([[1.0, 0], [3, 0], [0, 2], [-4, -2]])  # mean 0
    assert closest_pairs(rows, "abcd", 1) == [("a", "b", 1.0)]
    assert closest_pairs(rows, "abcd", 6)[-1][2] == pytest.approx(-0.894)


def test_a_linear_map_from_names_to_features_is_found_and_chance_is_not_beaten_without_one():
    r = np.random.default_rng(0)
    text = r.normal(size=(20, 6))
    labels = np.repeat(np.arange(20), 10)
    linear = text[labels] @ r.normal(size=(6, 30)) + 0.05 * r.normal(size=(200, 30))
    seen, unseen = range(15), range(15, 20)
    assert ridge_retrieval(text, linear, labels, seen, unseen) == 1.0
    free = r.normal(size=(20, 30))[labels] + 0.05 * r.normal(size=(200, 30))
    assert ridge_retrieval(text, free, labels, seen, unseen) <= 0.6
    with pytest.raises(ValueError, match="samples of seen"):
        ridge_retrieval(text, linear[:10], labels[:10], seen, unseen)


def test_nearest_equals_a_plain_loop():
    r = np.random.default_rng(1)
    pool, queries = r.normal(size=(50, 7)), r.normal(size=(130, 7))
    wanted = [min(np.linalg.norm(q - p) for p in pool) for q in queries]
    assert np.allclose(nearest(pool, queries), wanted)
    assert np.allclose(nearest(pool, pool[:3]), 0, atol=1e-6)


@pytest.mark.parametrize("color", COLORS)
def test_an_objects_colour_is_read_off_its_tones(color):
    r = np.random.default_rng(2)
    pixels = np.array(tones(color))[r.choice(3, size=200, p=[0.6, 0.25, 0.15])]
    noisy = np.clip(pixels + r.integers(-6, 7, pixels.shape), 0, 255).astype(np.uint8)
    assert color_of(noisy) == color
