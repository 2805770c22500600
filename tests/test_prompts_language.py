"""Prompts of a language model: what is taken, what is the template's, the same every time."""

import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import yaml
from test_prompts_preview import config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ovseg.__main__ import main
from ovseg.checkpoint import Checkpoint
from ovseg.data.prompts import TemplatePrompts
from ovseg.data.prompts_language import LanguagePrompts, caption_in
from ovseg.vocabulary import Vocabulary

WORDS = "house fish car dog a the and in with of photo red . two old".split()


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load("clipart", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random GPT-2 whose every token is a word."""
    where = tmp_path_factory.mktemp("model")
    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*WORDS, "?"])}, "?"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token=".").save_pretrained(where)
    ids = {"bos_token_id": 12, "eos_token_id": 12}
    torch.manual_seed(0)
    small = GPT2Config(vocab_size=len(WORDS) + 1, n_embd=16, n_layer=1, n_head=2, **ids)
    GPT2LMHeadModel(small).save_pretrained(where)
    return str(where)


class Words:
    """Somebody's tokenizer: a token for each character."""

    eos_token_id, pad_token_id, chat_template = 0, None, None

    def __call__(self, text, return_tensors, add_special_tokens):
        assert return_tensors == "pt"
        self.asked = text, add_special_tokens
        return {"input_ids": torch.tensor([[ord(letter) for letter in text]])}

    def decode(self, tokens, skip_special_tokens):
        return "".join(map(chr, tokens.tolist()))

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        return f"<user>{messages[0]['content']}<model>"


class Writer(SimpleNamespace):
    """Somebody's model: says the next of its sentences."""

    def generate(self, input_ids, do_sample, temperature, max_new_tokens, pad_token_id):
        assert do_sample and pad_token_id == 0 and torch.get_num_threads() == 1
        text = self.says[min(self.calls, len(self.says) - 1)]
        self.calls += 1
        return torch.cat([input_ids, torch.tensor([[ord(letter) for letter in text]])], dim=1)


@pytest.fixture
def written(folder, monkeypatch):
    """Return a function that makes prompts of a model which says some sentences."""
    words = Words()

    def make(*says, **arguments):
        writer = Writer(says=says, calls=0)
        monkeypatch.setattr(Checkpoint, "model", lambda self, kind: writer)
        monkeypatch.setattr(Checkpoint, "tokenizer", lambda self: words)
        only = {"objects": {2: 1}, "classes": ["house", "fish"], **arguments}
        return LanguagePrompts(folder, **only), writer, words

    return make


def test_a_caption_with_just_the_drawn_names_is_taken(written, vocabulary):
    prompts, writer, words = written('\n "Two red  fish swim past a house."\nI hope you like it.')
    request = prompts.request(0, vocabulary, 0)
    assert request.prompt == "Two red fish swim past a house."
    assert [(e.name, e.span) for e in request.entities] == [("fish", (8, 12)), ("house", (25, 30))]
    plain = TemplatePrompts({2: 1}, ["house", "fish"]).request(0, vocabulary, 0)
    assert request.seed == plain.seed and writer.calls == 1
    assert {e.class_id for e in request.entities} == {e.class_id for e in plain.entities}
    asked = r"Write a caption, .* shows a (house and a fish|fish and a house)\. Use these words\."
    assert re.fullmatch(rf"{asked}\nCaption:", words.asked[0]) and words.asked[1]
    words.chat_template = "there is one"
    prompts.request(0, vocabulary, 0)
    assert re.fullmatch(rf"<user>{asked}<model>", words.asked[0]) and not words.asked[1]


@pytest.mark.parametrize(
    "wrong", ["A fish.", "", "A fish, a house and a car.", "A house " + "of fish " * 20, "...\n!"]
)
def test_another_try_and_then_the_template(written, vocabulary, wrong):
    prompts, writer, _ = written(wrong, wrong, "a house of fish", max_words=20)
    assert prompts.request(0, vocabulary, 0).prompt == "a house of fish" and writer.calls == 3
    prompts, writer, _ = written(wrong, tries=2, max_words=20)
    with pytest.warns(UserWarning, match="wrote no caption in 2 tries .*`ovseg prompts` counts"):
        made = [prompts.request(index, vocabulary, 3) for index in range(4)]  # said once
    plain = TemplatePrompts({2: 1}, ["house", "fish"])
    assert made == [plain.request(index, vocabulary, 3) for index in range(4)]
    assert writer.calls == 8 and prompts.counts() == {"by the template": 4}


def test_a_real_model_is_a_function_of_seed_and_index(folder, vocabulary):
    arguments = {"objects": {1: 1}, "classes": ["house", "fish", "car"], "tries": 4}
    one, other = (LanguagePrompts(folder, **arguments, max_new_tokens=4) for _ in range(2))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="wrote no caption in 4 tries"):
        made = [one.request(index, vocabulary, 1) for index in range(10)]
    assert torch.equal(torch.get_rng_state(), state)
    threads = torch.get_num_threads()
    with pytest.warns(UserWarning, match="wrote no caption in 4 tries"):
        again = [other.request(index, vocabulary, 1) for index in reversed(range(10))]
    assert again[::-1] == made and torch.get_num_threads() == threads
    counts = one.counts()
    assert counts.keys() == {"written by the model", "by the template"}
    assert sum(counts.values()) == 10
    by_template = Counter(request.prompt.startswith("a photo of ") for request in made)
    assert by_template[True] >= counts["by the template"] and by_template[False] > 1
    for request in made:
        (entity,) = request.entities
        assert request.prompt[slice(*entity.span)] == entity.name
    assert one.request(0, vocabulary, 2).prompt != made[0].prompt
    facts = one.describe()
    assert facts == other.describe() and facts["tries"] == 4
    assert facts["model"]["digest"] == Checkpoint(folder).digest


def test_the_preview_counts(folder, tmp_path, capsys):
    arguments = {"model": folder, "objects": {1: 1}, "classes": ["dog"], "tries": 4}
    prompts = {"class_path": "ovseg.data.prompts_language.LanguagePrompts", "init_args": arguments}
    stage = tmp_path / "stage.yaml"
    stage.write_text(yaml.safe_dump(config(prompts)))
    with pytest.warns(UserWarning, match="wrote no caption in 4 tries"):
        assert main(["prompts", "--config", str(stage), "-n", "5"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert sum(map(int, re.findall(r"(\d+) (?:written by the model|by the template)", last))) == 5


def test_arguments(folder, tmp_path):
    with pytest.raises(ValueError, match="needs {objects} once, got 'Write'"):
        LanguagePrompts(folder, instruction="Write")
    with pytest.raises(ValueError, match="the instruction may have the places {objects}, got {x}"):
        LanguagePrompts(folder, instruction="Write {x} of {objects}")
    for wrong in ({"tries": 0}, {"max_words": 0}, {"temperature": 0.0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match="must be >= 1 and temperature > 0, got"):
            LanguagePrompts(folder, **wrong)
    with pytest.raises(FileNotFoundError, match="no model 'nowhere'"):
        LanguagePrompts("nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(ValueError, match="cannot load the Auto"):
        LanguagePrompts(str(tmp_path)).request(0, Vocabulary.load("clipart", "1"), 0)


def test_the_line_of_an_answer():
    assert caption_in("  \n---\n“A cafe\u0301   by  the sea.”  \nmore") == "A café by the sea."
    assert caption_in("") == ""
