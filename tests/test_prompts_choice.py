"""Draws, and the choice of classes by itself; its balance is counted in test_prompts.py."""

import numpy as np
import pytest

from ovseg.data.prompts import TemplatePrompts
from ovseg.data.prompts_choice import BalancedChoice, permutation, raw_draws, unit
from ovseg.vocabulary import Vocabulary


def test_draws_are_decided_by_their_key():
    assert raw_draws(3, 1, 2).tolist() == raw_draws(5, 1, 2)[:3].tolist()
    assert raw_draws(3, 1, 2).tolist() != raw_draws(3, 2, 1).tolist()
    assert sorted(permutation(9, 4)) == list(range(9))
    assert len({tuple(permutation(9, key)) for key in range(50)}) == 50


def test_unit_is_below_one():
    assert unit(np.uint64(0)) == 0
    assert unit(np.uint64(2**63)) == 0.5
    assert unit(np.uint64(2**64 - 1)) < 1
    assert np.mean([unit(draw) for draw in raw_draws(4000, 0)]) == pytest.approx(0.5, abs=0.02)


def test_shares_are_what_was_given_or_refused():
    thirds = BalancedChoice({1: 0.333, 2: 0.667}, "all")
    assert [str(share) for share in thirds.shares.values()] == ["1/3", "2/3"]
    thirds = BalancedChoice({1: 0.333, 2: 0.333, 3: 0.334}, "all")
    assert len(set(thirds.shares.values())) == 1
    assert BalancedChoice({1: 0.167, 2: 0.833}, "all").shares[2].denominator == 6
    assert BalancedChoice({1: 0, 2: 999}, "all").shares == {2: 1}
    assert sum(BalancedChoice({1: 1, 2: 99}, "all").shares.values()) == 1
    for shares in ({1: 1, 2: 999}, {1: 1, 2: 101}, {1: 0.0049, 2: 0.9951}):
        with pytest.raises(ValueError, match="shares must be fractions of at most 100 parts"):
            BalancedChoice(shares, "all")


def test_prompts_show_the_classes_that_were_chosen():
    vocabulary = Vocabulary.load("clipart")
    choice, prompts = BalancedChoice({1: 1, 3: 1}, "all"), TemplatePrompts({1: 1, 3: 1}, "all")
    for index in range(40):
        shown = [e.class_id for e in prompts.request(index, vocabulary, 2).entities]
        assert sorted(shown) == sorted(choice.ids(index, vocabulary, 2))
