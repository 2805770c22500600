"""Stage 2 with the toy backbone, in this process."""

import functools
import json

import pytest
import torch
from acme.annotator import ColorAnnotator
from acme.backbone import ToyBackbone
from acme.grounder import NearnessGrounder
from toy_data import data_module, live_stream, quiet_trainer, write_dataset

from ovseg.annotators.grounder import GrounderAnnotator
from ovseg.clipart.stream import DrawnScenes
from ovseg.data.base import IGNORED_UNSEEN
from ovseg.data.found import FoundStream
from ovseg.data.live import LiveStream
from ovseg.data.prompts import TemplatePrompts
from ovseg.data.shards import ShardStream
from ovseg.errors import one_line
from ovseg.grounders.attention import AttentionGrounder
from ovseg.grounders.card import read_results
from ovseg.grounders.folder import load_grounder, read_config, taught_names, weights_digest
from ovseg.losses import with_negatives
from ovseg.modules.grounding import GroundingModule
from ovseg.modules.grounding_scores import Calibration
from ovseg.results_grounding import PublishedGrounding
from ovseg.vocabulary import Vocabulary

VOCABULARY = Vocabulary.load("clipart", "1")
ADAM = functools.partial(torch.optim.Adam, lr=0.03)


def data(**arguments):
    streams = {
        "train": live_stream(64, "seen"),
        "val": {"seen": live_stream(12, "seen", seed=1)},
        "test": {"seen": live_stream(16, "seen", seed=2), "unseen": live_stream(9, "unseen")},
    }
    return data_module(16, **{**streams, **arguments})


def module(source, kind=NearnessGrounder, **arguments) -> GroundingModule:
    facts = {name: getattr(source, name) for name in ("feature_spec", "text_width", "vocabulary")}
    return GroundingModule(kind, ADAM, **facts, **arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which `fit` has run, and its module."""
    folder = tmp_path_factory.mktemp("fit")
    torch.manual_seed(0)
    source = data()
    model = module(source, output=str(folder / "grounder"), calibrate=True, dice=0.5, negatives=1)
    scheduler = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=50, gamma=0.5)
    model.lr_scheduler = scheduler
    trainer = quiet_trainer(
        folder, max_epochs=15, check_val_every_n_epoch=15, num_sanity_val_steps=1
    )
    trainer.fit(model, source)
    return folder, model, trainer


def test_fit_learns_and_logs(trained):
    _, _, trainer = trained
    logged = trainer.callback_metrics
    assert {"train/loss", "val/miou", "val/seen/miou", "val/seen/choice"} <= set(logged)
    assert logged["val/miou"] > 40 and logged["val/seen/choice"] > 80
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.015)  # 60 steps


@pytest.mark.parametrize("empty", [False, True])
def test_a_missed_name_carries_no_loss_unless_its_target_is_to_be_empty(empty):
    source = data()
    model = module(source, empty_missed=empty)
    model._teachable_ids = torch.tensor(VOCABULARY.seen)
    stream = live_stream(64, "seen")
    stream.bind(source.vocabulary)
    batch = stream.complete(stream[[0, 1, 2]], source.backbone)
    found = torch.zeros_like(batch.found)
    found[0, 0] = True
    batch = batch.replace(found=found)
    model.log = lambda *args, **kwargs: None
    logits = model.grounder(batch.features, batch.entities).detach()
    size = batch.labels.shape[-2:]
    logits = torch.nn.functional.interpolate(logits, size, mode="bilinear")
    expected = []
    for row, column in batch.entities.valid.nonzero().tolist():
        if empty or found[row, column]:
            target = (batch.labels[row] == batch.entities.class_ids[row, column]).double()
            p = logits[row, column].double().sigmoid()
            expected.append(-(target * p.log() + (1 - target) * (1 - p).log()).mean())
    loss = model.training_step(batch, 0)
    torch.testing.assert_close(loss.double(), torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


def teach(batch, folder, **arguments) -> dict:
    """Train one step on a batch; return what the loss was given."""
    given = {}

    def spy(logits, targets, pixels, found, dice):
        given.update(targets=targets, found=found)
        return logits.sum()

    source = data(train=live_stream(16, "all"))
    model = module(source, **arguments)
    quiet_trainer(folder, max_steps=1, limit_val_batches=0).fit(model, source)
    model.log = lambda *args, **kwargs: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ovseg.modules.grounding.grounding_loss", spy)
        patch.setattr("ovseg.modules.grounding.with_negatives", record := Recorder())
        model.training_step(batch, 0)
    return given | {"entities": record.entities}


class Recorder:
    """`with_negatives` that keeps what it returned."""

    entities = None

    def __call__(self, *args):
        self.entities = with_negatives(*args)
        return self.entities


@pytest.mark.parametrize("unseen_masks", [False, True])
def test_unseen_names_are_no_targets(tmp_path, unseen_masks):
    """Prompts name all classes, the annotator is asked for the seen ones."""
    source, stream = data(), live_stream(64, "all")
    stream.bind(VOCABULARY)
    batch = stream.complete(stream[range(24)], source.backbone)
    unseen = torch.isin(batch.entities.class_ids, torch.tensor(VOCABULARY.unseen))
    batch = batch.replace(found=batch.found & ~unseen)
    options = {"unseen_masks": unseen_masks, "empty_missed": True, "negatives": 2}
    given = teach(batch, tmp_path, **options)
    taught = given["entities"].class_ids[given["found"]]
    assert unseen.any() and given["found"][:, -2:].all()
    assert torch.isin(taught, torch.tensor(VOCABULARY.unseen)).any() == unseen_masks


@pytest.mark.parametrize("empty_missed", [False, True])
def test_a_name_that_another_covers_carries_no_loss(tmp_path, empty_missed):
    source, stream = data(), live_stream(64, "seen")
    stream.bind(VOCABULARY)
    batch = stream.complete(stream[range(8)], source.backbone)
    row = int((batch.found & batch.entities.valid).all(dim=1).nonzero()[0])
    labels = batch.labels.clone()
    labels[row][labels[row] == batch.entities.class_ids[row, 0]] = batch.entities.class_ids[row, 1]
    options = {"negatives": 1, "empty_missed": empty_missed}
    before = teach(batch, tmp_path, **options)["found"]
    after = teach(batch.replace(labels=labels), tmp_path, **options)["found"]
    assert before[row, 0] and not after[row, 0]
    assert (before != after).sum() == 1


def test_the_sanity_check_does_not_calibrate(tmp_path, monkeypatch):
    counted, best = [], Calibration.best

    def spy(calibration):
        counted.append((int(calibration.metric.entities), threshold := best(calibration)))
        return threshold

    monkeypatch.setattr(Calibration, "best", spy)
    for steps in (0, 2):
        torch.manual_seed(0)
        source = data()
        trainer = quiet_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=steps)
        trainer.fit(module(source, calibrate=True), source)
    assert len(counted) == 2 and counted[0] == counted[1]


def test_fit_writes_the_grounder_folder(trained):
    folder, model, _ = trained
    loaded = load_grounder(folder / "grounder", ToyBackbone())
    assert 0 < loaded.threshold < 1 and loaded.threshold == model.grounder.threshold
    for name, tensor in model.grounder.state_dict().items():
        assert torch.equal(tensor.cpu(), loaded.state_dict()[name])
    assert read_config(folder / "grounder")["vocabulary"]["split"] == "1"
    assert "Not measured." in (folder / "grounder" / "README.md").read_text()


def test_test_from_the_folder_writes_results(trained, tmp_path):
    folder, model, _ = trained
    source = data()
    again = module(source, start=str(folder / "grounder"))
    quiet_trainer(tmp_path).test(again, source, verbose=False)
    assert again.grounder.threshold == model.grounder.threshold
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["seen", "unseen"] and read_results(tmp_path / "results.json")
    for name, size in (("seen", 16), ("unseen", 9)):
        scores = results[name]
        assert scores["images"] + round(scores["excluded"] * size) == size
        assert 0 < scores["excluded"] < 1  # the toy forgets a fifth of its objects
        assert scores["choice"] > 80 and scores["swapped"]["miou"] < scores["miou"]
        assert 0 < scores["foreground"]["miou"] < 100 and scores["ceiling"]["miou"] > 70
        values = list(scores["per_class"].values())
        assert scores["miou"] == pytest.approx(sum(values) / len(values), abs=1e-3)
    assert set(results["unseen"]["per_class"]) <= {"boat", "cat", "flower", "key", "umbrella"}


def test_the_table_and_what_was_left_out_before_it_came_here(trained, tmp_path, monkeypatch):
    folder, _, _ = trained
    path = write_dataset(tmp_path / "set", data(predict={"data": live_stream(40, seed=4)}))
    stored = FoundStream(str(path))
    source = data(test={"two_seen": stored})
    row = PublishedGrounding(method="A", vocabulary="", columns={"two_seen": 6.5}, source="P")
    monkeypatch.setattr("ovseg.modules.grounding.published", lambda *arguments: [row])
    again = module(source, start=str(folder / "grounder"))
    quiet_trainer(tmp_path).test(again, source, verbose=False)
    scores = json.loads((tmp_path / "results.json").read_text())["two_seen"]
    assert scores["published"] == {"A, mean of splits": 6.5}
    assert scores["images"] == len(stored) and 0 < stored.excluded
    assert scores["excluded"] == pytest.approx(stored.excluded, abs=1e-4)
    own = f"| **NearnessGrounder** | this test | {scores['miou']:.1f} |"
    assert own in (tmp_path / "results.md").read_text()


def test_training_goes_on_from_the_folder(trained, tmp_path):
    folder, model, _ = trained
    source = data()
    again = module(source, start=str(folder / "grounder"))
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(again, source)
    before, after = (m.grounder.of_name.weight for m in (model, again))
    step = (before - after).abs().max().item()
    assert step == pytest.approx(0.03, rel=1e-3)  # Adam's first step, from where it was
    trainer.test(again, source, verbose=False)
    assert torch.equal(again.grounder.of_name.weight, after)


class TaughtColors(ColorAnnotator):
    """Says that it has learnt from masks of what it is asked for."""

    def describe(self) -> dict:
        return {**super().describe(), "trained_on": list(self.requested)}


def test_masks_of_unseen_classes_are_remembered_in_the_folder(trained, tmp_path):
    """A bound stays one, for whoever begins with its folder or labels images by it."""
    assert taught_names(read_config(trained[0] / "grounder")) == {
        c.name for c in VOCABULARY.classes if c.id in VOCABULARY.seen
    }
    stream = LiveStream(TemplatePrompts({1: 1}, "all"), TaughtColors("all"), 16)
    source, folder = data(train=stream), str(tmp_path / "bound")
    bound = module(source, output=folder, unseen_masks=True)
    quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(bound, source)
    assert taught_names(read_config(folder)) == {c.name for c in VOCABULARY.classes}
    assert set(bound.grounder.learnt_from["trained_on"]) == taught_names(read_config(folder))
    names = "was trained with masks of boat, cat, flower, key, umbrella, which split 1"
    source = data()
    for verb in ("fit", "test"):
        with pytest.raises(ValueError, match=f"the grounder in {folder} {names}"):
            getattr(quiet_trainer(tmp_path, max_steps=1), verb)(
                module(source, start=folder), source
            )
    with pytest.raises(ValueError, match=f"the grounder in {folder} {names}"):
        GrounderAnnotator(folder).bind(VOCABULARY)
    again = module(source, start=folder, output=str(tmp_path / "again"), unseen_masks=True)
    quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(again, source)  # on seen ones
    quiet_trainer(tmp_path).test(again, source, verbose=False)
    learnt = ["boat", "cat", "flower", "key", "umbrella"]
    for scores in json.loads((tmp_path / "results.json").read_text()).values():
        assert scores["unseen_masks"] == learnt
        assert scores["weights"] == weights_digest(again.grounder)
    assert "a bound, no zero-shot result" in (tmp_path / "results.md").read_text()
    assert taught_names(read_config(tmp_path / "again")) == {c.name for c in VOCABULARY.classes}


def test_a_threshold_chosen_on_masks_of_unseen_classes_is_remembered(tmp_path):
    stream = LiveStream(TemplatePrompts({1: 1}, "all"), TaughtColors("all"), 16)
    source, folder = data(val={"all": stream}), tmp_path / "g"
    with pytest.raises(ValueError, match=r"data\.val\.all teaches masks of boat"):
        quiet_trainer(tmp_path).validate(module(source, AttentionGrounder, calibrate=True), source)
    options = {"calibrate": True, "unseen_masks": True, "output": str(folder)}
    model = module(source, AttentionGrounder, **options)
    quiet_trainer(tmp_path).validate(model, source, verbose=False)
    assert taught_names(read_config(folder)) == {c.name for c in VOCABULARY.classes}


class Taught(LiveStream):
    """Does what a protocol may rule out."""

    def practices(self) -> set[str]:
        return {IGNORED_UNSEEN}


def test_what_was_done_in_training_goes_on_with_the_folder(tmp_path):
    """To whoever labels images by it, stored or not, and to a training that begins with it."""
    stream, folder = Taught(TemplatePrompts({1: 1}, "seen"), ColorAnnotator(), 16), tmp_path / "a"
    quiet = {"max_steps": 1, "limit_val_batches": 0}
    source = data(train=stream)
    quiet_trainer(tmp_path, **quiet).fit(module(source, output=str(folder)), source)
    source, again = data(), tmp_path / "b"
    model = module(source, start=str(folder), output=str(again))
    quiet_trainer(tmp_path, **quiet).fit(model, source)
    for grounder in (folder, again):
        annotator = GrounderAnnotator(str(grounder))
        annotator.bind(VOCABULARY)
        assert IGNORED_UNSEEN in annotator.describe()["practices"]
    labelled = LiveStream(TemplatePrompts({1: 1}, "seen"), GrounderAnnotator(str(folder)), 4)
    source = data(predict={"data": labelled})
    stored = ShardStream(str(write_dataset(tmp_path / "set", source)))
    stored.bind(VOCABULARY)
    assert IGNORED_UNSEEN in labelled.practices() and IGNORED_UNSEEN in stored.practices()


def test_the_baseline_needs_no_fit(tmp_path):
    source = data()
    model = module(source, AttentionGrounder, output=str(tmp_path / "g"), calibrate=True)
    quiet_trainer(tmp_path).validate(model, source, verbose=False)
    assert read_config(tmp_path / "g")["threshold"] == model.grounder.threshold != 0.5
    with pytest.raises(ValueError, match="no parameter to train.*validate"):
        quiet_trainer(tmp_path, max_steps=1).fit(model, source)


def test_the_threshold_travels_in_a_checkpoint():
    source = data()
    first, second = module(source), module(source)
    first.grounder.threshold = 0.35
    checkpoint = {}
    first.on_save_checkpoint(checkpoint)
    second.on_load_checkpoint(checkpoint)
    assert second.grounder.threshold == 0.35


def test_what_does_not_fit_is_refused(trained, tmp_path):
    folder, _, _ = trained
    start = str(folder / "grounder")
    other = data(backbone=ToyBackbone(size=64))
    with pytest.raises(ValueError, match="another backbone"):
        quiet_trainer(tmp_path).test(module(other, start=start), other)
    source = data()
    with pytest.raises(ValueError, match="holds a NearnessGrounder.*is a AttentionGrounder"):
        quiet_trainer(tmp_path).test(module(source, AttentionGrounder, start=start), source)
    wider = functools.partial(NearnessGrounder, width=4)
    with pytest.raises(ValueError, match="other arguments .*: width=3 there, 4 here: name thos"):
        quiet_trainer(tmp_path, max_steps=1).fit(module(source, wider, start=start), source)
    quiet_trainer(tmp_path).test(module(source, wider, start=start), source, verbose=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="holds no grounder"):
        model = module(source, output=str(tmp_path / "full"))
        quiet_trainer(tmp_path, max_steps=1).fit(model, source)
    with pytest.raises(ValueError, match=r"data\.backbone"):
        GroundingModule(NearnessGrounder, ADAM, vocabulary=source.vocabulary)
    with pytest.raises(ValueError, match="vocabulary"):
        GroundingModule(NearnessGrounder, ADAM, feature_spec=source.feature_spec, text_width=8)
    with pytest.raises(ValueError, match="dice and negatives"):
        module(source, dice=-1.0)


# Lightning's warning of an empty loader is what the user should read here
@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
def test_a_column_in_which_nothing_was_found_has_no_score(trained, tmp_path):
    folder, _, _ = trained
    shards = {"data": live_stream(4)}
    write_dataset(tmp_path / "none", data_module(4, ToyBackbone(forget=1.0), predict=shards))
    streams = {"none": FoundStream(str(tmp_path / "none")), "seen": live_stream(8, "seen", seed=2)}
    source = data(test=streams, backbone=ToyBackbone())
    model = module(source, start=str(folder / "grounder"))
    quiet_trainer(tmp_path).test(model, source, verbose=False)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["none"]["images"] == 0 and results["none"]["miou"] is None
    assert results["seen"]["images"] == 8 and results["seen"]["miou"] > 0


def test_streams_without_features_are_one_line(tmp_path):
    drawn = DrawnScenes(16, 0, classes="seen")
    source = data(train=drawn, val={"drawn": drawn}, test={"drawn": drawn})
    model = module(source)
    for run, kind in (("fit", "train"), ("validate", "val.drawn"), ("test", "test.drawn")):
        trainer = quiet_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
        with pytest.raises(ValueError) as caught:
            getattr(trainer, run)(model, source)
        line = one_line(caught.value)
        assert f"those of data.{kind} come without features, entities, found: set data" in line
        assert "\n" not in line


def test_weights_of_another_dtype_are_one_line(tmp_path):
    source = data()
    trainer = quiet_trainer(tmp_path, max_epochs=1, precision="bf16-true", num_sanity_val_steps=0)
    with pytest.raises(ValueError, match="weights are bfloat16 on cpu, .* float32 on cpu: "):
        trainer.fit(module(source), source)
