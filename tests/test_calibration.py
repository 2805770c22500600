"""ovseg.grounders.calibration: what pixels of any picture answer for a name."""

from __future__ import annotations

import torch

from ovseg.grounders.calibration import MOMENTUM, ProbeNorm
from ovseg.structures import Probe


def probe(seed: int, size: int = 4) -> Probe:
    draw = torch.Generator().manual_seed(seed)
    queries = 3 * torch.randn(size, 2, 3, 5, 6, 6, generator=draw) + 1
    totals = 2 * torch.randn(size, 2, 3, 6, 6, generator=draw) + 7 + queries.mean(dim=3)
    return Probe(queries, totals, torch.randn(3, 5, 8, generator=draw))


def test_answers_for_any_name_have_mean_0_and_variance_1_where_they_were_seen():
    norm, seen = ProbeNorm(2, 3, 5), probe(0)
    norm.update(seen)
    text = torch.randn(1, 4, 8).expand(4, -1, -1)  # four names, trained or not
    answers = norm(seen, text)
    assert answers.shape == (4, 2, 4, 3, 6, 6)
    over = (0, 4, 5)  # pictures and pixels: of each step, name and head
    torch.testing.assert_close(answers.mean(over), torch.zeros(2, 4, 3), atol=1e-4, rtol=0)
    variance = answers.var(over, correction=0)
    torch.testing.assert_close(variance, torch.ones(2, 4, 3), atol=1e-2, rtol=0)


def test_of_one_answer_by_hand():
    norm, seen = ProbeNorm(2, 3, 5), probe(0)
    norm.update(seen)
    text, other = torch.randn(1, 1, 8), probe(1, size=1)
    other = Probe(other.queries, other.totals, seen.keys)
    raw = seen(text.expand(4, -1, -1))[:, 1, 0, 2]  # every answer of step 1 and head 2
    mine = (other(text)[0, 1, 0, 2] - raw.mean()) / (raw.var(correction=0) + 1e-3).sqrt()
    torch.testing.assert_close(norm(other, text)[0, 1, 0, 2], mine, atol=1e-4, rtol=1e-4)


def test_moments_run_along_and_are_saved():
    norm, first, second = ProbeNorm(2, 3, 5), probe(0), probe(5)
    norm.update(first)
    start = norm.mean.clone()
    alone = ProbeNorm(2, 3, 5)
    alone.update(second)
    norm.update(second)
    torch.testing.assert_close(norm.mean, start + MOMENTUM * (alone.mean - start))
    again = ProbeNorm(2, 3, 5)
    again.load_state_dict(norm.state_dict())
    text = torch.randn(4, 2, 8)
    assert torch.equal(again(first, text), norm(first, text))
    assert not list(norm.parameters())


def test_mixed_precision_changes_nothing():
    mixed, full, seen = ProbeNorm(2, 3, 5), ProbeNorm(2, 3, 5), probe(0)
    text = torch.randn(4, 2, 8)
    full.update(seen)
    with torch.autocast("cpu", torch.bfloat16):
        mixed.update(seen)
        answers = mixed(seen, text)
    assert answers.dtype == torch.float32 and torch.equal(answers, full(seen, text))
    assert torch.equal(mixed.cov, full.cov) and torch.equal(mixed.mean, full.mean)


def test_before_anything_was_seen_answers_are_finite():
    seen = probe(0)
    assert ProbeNorm(2, 3, 5)(seen, torch.randn(4, 2, 8)).isfinite().all()
