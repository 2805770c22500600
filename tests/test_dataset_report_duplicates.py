"""Near duplicates against all pairs, one by one."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from ovseg.report.duplicates import NEAR, difference_hash, near_duplicates, near_pairs


def differing(one: int, other: int) -> int:
    return (int(one) ^ int(other)).bit_count()


def crowd(seed: int, count: int, flips: int) -> np.ndarray:
    """Return hashes of which half differ from others in a few bits, some of them in none."""
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    for place in range(count // 2, count):
        value = int(hashes[random.integers(place)])
        for bit in random.integers(0, 64, random.integers(flips + 1)):
            value ^= 1 << int(bit)
        hashes[place] = value
    return hashes


@pytest.mark.parametrize("seed", range(4))
def test_pairs_and_counts_are_those_of_a_loop_over_all_pairs(seed):
    hashes = crowd(seed, 300, flips=5)
    loop = {(a, b): differing(hashes[a], hashes[b]) for a, b in combinations(range(300), 2)}
    near = {pair: bits for pair, bits in loop.items() if bits <= NEAR}
    found = near_duplicates(hashes, limit=10_000)
    assert found.pairs == [list(near.values()).count(bits) for bits in range(NEAR + 1)]
    assert min(found.pairs) > 0
    assert found.images == len({place for pair in near for place in pair})
    for one, other, bits in found.examples:
        assert loop[min(one, other), max(one, other)] == bits
    bits = [bits for *_, bits in found.examples]
    assert bits == sorted(bits)
    unique = np.unique(hashes)
    expected = {
        (a, b)
        for a, b in combinations(range(len(unique)), 2)
        if differing(unique[a], unique[b]) <= NEAR
    }
    one, other = near_pairs(unique)
    assert set(zip(one.tolist(), other.tolist(), strict=True)) == expected


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_to_compare(count):
    found = near_duplicates(np.zeros(count, dtype=np.uint64), limit=5)
    assert found == (0, [0] * (NEAR + 1), [])


def test_many_of_one_hash_are_one_example():
    found = near_duplicates(np.full(1000, 7, dtype=np.uint64), limit=5)
    assert found.images == 1000 and found.pairs[0] == 1000 * 999 // 2
    assert found.examples == [(0, 1, 0)]


def test_examples_are_limited():
    hashes = np.repeat(crowd(0, 40, flips=2)[:20], 2)
    assert len(near_duplicates(hashes, limit=7).examples) == 7


def test_hash_is_the_sign_of_horizontal_differences():
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (8, 9)).astype(np.uint8)
    bits = "".join(str(int(a < b)) for row in grey for a, b in zip(row, row[1:], strict=False))
    image = Image.fromarray(grey).convert("RGB")
    assert difference_hash(image) == int(bits, 2)
    large = Image.fromarray(random.integers(0, 256, (64, 64, 3)).astype(np.uint8))
    small = large.resize((32, 32), Image.Resampling.LANCZOS)
    assert differing(difference_hash(large), difference_hash(small)) <= NEAR
    mirrored = large.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert differing(difference_hash(large), difference_hash(mirrored)) > 20
