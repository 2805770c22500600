"""The loop that trains the clip-art world, and its tokenizer."""

import torch
from torch import nn

from ovseg.clipart.captions import corpus
from ovseg.clipart.scenes import nouns
from ovseg.clipart.training.loop import schedule, train
from ovseg.clipart.training.text import MAX_LENGTH, train_tokenizer


def _fit(out, steps, seen=None):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)

    def loss(step):
        if seen is not None:
            seen.append(step)
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(step))
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    return train("line", model, loss, steps=steps, lr=0.05, out=out, warmup=1, ema=0.5)


def test_training_resumes_where_it_stopped(tmp_path):
    seen = []
    _fit(tmp_path / "a", 30, seen)
    assert seen == list(range(30))
    again = []
    weights = _fit(tmp_path / "a", 30, again).weight
    assert again == []  # done already
    more = []
    _fit(tmp_path / "a", 40, more)
    assert more == list(range(30, 40))
    assert weights.shape == (1, 2)
    assert (tmp_path / "a" / "line.png").stat().st_size > 1000  # the loss curve


def test_schedule_warms_up_and_decays():
    values = [schedule(step, 1000, 100) for step in range(1000)]
    assert values[0] == 0.01 and values[99] == 1.0 and values[500] == 1.0
    assert 0.02 <= values[999] < 0.021


def test_tokenizer_keeps_every_noun_whole_and_knows_every_byte(tmp_path):
    tokenizer = train_tokenizer(tmp_path, captions=300)
    for noun in nouns().values():
        assert len(tokenizer.tokenize(noun.name)) == 1, noun.name
    ids = tokenizer("a xylophone é 漢").input_ids
    assert tokenizer.eos_token_id not in ids[:-1]
    longest = max(len(tokenizer(text).input_ids) for text in corpus(0, 500))
    assert longest <= MAX_LENGTH
