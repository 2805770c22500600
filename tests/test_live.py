"""The live stream with a third party's backbone and annotator."""

from itertools import combinations

import pytest
import torch
from acme.annotator import ColorAnnotator
from acme.backbone import ToyBackbone
from lightning.pytorch.callbacks import ModelCheckpoint
from test_datamodule import Recorder
from toy_data import data_module, live_stream, quiet_trainer

from ovseg.data.live import LiveStream
from ovseg.data.prompts import TemplatePrompts
from ovseg.data.samplers import TrainSampler
from ovseg.structures import Annotation, ShardPosition
from ovseg.vocabulary import Vocabulary


def make_stream(size=10, classes="all", **arguments):
    stream = LiveStream(
        TemplatePrompts({1: 1, 2: 1}, "all"), ColorAnnotator(classes), size, **arguments
    )
    stream.bind(Vocabulary.load("clipart", "1"))
    return stream


def test_items_are_requests_of_their_positions():
    stream = make_stream(seed=3)
    batch = stream[[7, 2]]
    expected = [stream.prompts.request(i, stream.vocabulary, 3) for i in (7, 2)]
    assert batch.requests == expected and batch.indices.tolist() == [7, 2]
    assert batch.images is None and batch.position is None
    assert len(stream) == 10


def test_completed_batch_equals_the_parts_called_by_hand():
    stream, backbone = make_stream(), ToyBackbone(forget=0.3)
    batch = stream.complete(stream[list(range(10))], backbone)
    sample = backbone.sample(batch.requests)
    annotation = stream.annotator.annotate(sample)
    assert torch.equal(batch.images, sample.images) and torch.equal(batch.latents, sample.latents)
    assert torch.equal(batch.found, annotation.found)
    assert 0 < batch.found.sum() < batch.entities.valid.sum()  # something was forgotten
    for row, request in enumerate(batch.requests):
        expected = torch.zeros(32, 32, dtype=torch.long)
        for column, entity in enumerate(request.entities):
            expected[annotation.masks[row, column] > 0] = entity.class_id
        assert torch.equal(batch.labels[row], expected)
    assert set(batch.features.maps) == {"fine", "coarse"}


def test_entities_that_were_not_asked_for_are_background():
    stream = make_stream(classes="seen")
    batch = stream.complete(stream[list(range(10))], ToyBackbone())
    unseen = torch.isin(batch.entities.class_ids, torch.tensor(stream.vocabulary.unseen))
    assert unseen.any() and not (batch.found & unseen).any()
    assert not torch.isin(batch.labels, torch.tensor(stream.vocabulary.unseen)).any()


def test_place_in_the_dataset():
    stream = make_stream(size=10, shard_size=4)
    assert stream.num_shards == 3
    assert stream[[0, 1, 2]].position == ShardPosition(0, True, False)
    assert stream[[3]].position == ShardPosition(0, False, True)
    assert stream[[8, 9]].position == ShardPosition(2, True, True)
    assert stream[[3, 4]].position is None and stream[[2, 1]].position is None


def test_with_a_quota_positions_go_to_the_limit():
    stream = make_stream(size=4, shard_size=4, quota=2, limit=10)
    assert len(stream) == 10 and stream.num_shards == 3
    assert stream[[8, 9]].position == ShardPosition(2, True, True)
    assert {key: stream.describe()[key] for key in ("size", "quota", "limit")} == {
        "size": 4,
        "quota": 2,
        "limit": 10,
    }


def images_of(stream, rank, epoch, world=2):
    """Return the numbers and the images that a process trains on in an epoch."""
    sampler = TrainSampler(stream, 2, 0, rank, world)
    sampler.set_epoch(epoch)
    batches = [stream.complete(stream[positions], ToyBackbone()) for positions in sampler]
    indices = [request.index for batch in batches for request in batch.requests]
    return dict(zip(indices, torch.cat([batch.images for batch in batches]), strict=True))


@pytest.mark.parametrize("fresh", [False, True])
def test_processes_train_on_other_images_and_fresh_epochs_on_new_ones(fresh):
    stream = make_stream(8, fresh=fresh)
    epochs = [[images_of(stream, rank, epoch) for rank in (0, 1)] for epoch in (0, 1, 2)]
    for number, (first, second) in enumerate(epochs):
        start = 8 * number if fresh else 0
        assert sorted([*first, *second]) == list(range(start, start + 8))
        every = [*first.values(), *second.values()]
        assert not any(torch.equal(a, b) for a, b in combinations(every, 2))
    for index, image in {**epochs[2][0], **epochs[2][1]}.items():
        assert torch.equal(image, stream.complete(stream[[index]], ToyBackbone()).images[0])
    assert "fresh" not in stream.describe()  # it decides no written byte


def test_fresh_training_resumes_with_the_same_images(tmp_path):
    def run(steps, checkpoint=None):
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5)
        options = {"enable_checkpointing": True, "callbacks": [saver], "max_steps": steps}
        module, data = Recorder(), data_module(2, train=live_stream(6, fresh=True))
        trainer = quiet_trainer(tmp_path, **options)
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return [batch.requests for _, _, batch in module.seen]

    straight = run(9)
    assert sorted(r.index for batch in straight for r in batch) == list(range(18))
    assert run(5) + run(9, tmp_path / "step=5.ckpt") == straight


def test_empty_batch_passes_through():
    stream = make_stream()
    batch = stream.complete(stream[[]], ToyBackbone())
    assert len(batch) == 0 and batch.images is None


class WrongShape(ColorAnnotator):
    def annotate(self, sample):
        right = super().annotate(sample)
        return Annotation(right.masks[:, :, :4], right.scores, right.found)


class Picky(ColorAnnotator):
    def check(self, backbone):
        raise ValueError(f"not with {backbone.describe()['model']}")


def test_the_annotator_may_refuse_a_backbone():
    stream = LiveStream(TemplatePrompts(), Picky(), 1)
    with pytest.raises(ValueError, match="not with acme/toy"):
        stream.check(ToyBackbone())


def test_errors():
    with pytest.raises(ValueError, match="size and shard_size must be >= 1, got 0"):
        make_stream(size=0)
    stream = make_stream()
    with pytest.raises(ValueError, match="set data.backbone"):
        stream.check(None)
    with pytest.raises(ValueError, match="needs as many unseen classes"):
        LiveStream(TemplatePrompts({7: 1}, "unseen"), ColorAnnotator(), 1).bind(stream.vocabulary)
    wrong = LiveStream(TemplatePrompts(), WrongShape(), 4)
    wrong.bind(stream.vocabulary)
    with pytest.raises(ValueError, match=r"WrongShape must return masks.*got \(4, 2, 4, 32\)"):
        wrong.complete(wrong[[0, 1, 2, 3]], ToyBackbone())


class Short(ToyBackbone):
    """Takes prompts of a few words."""

    def check_request(self, request):
        if len(request.prompt.split()) > 6:
            raise ValueError("too long: shorten it")


def test_prompts_that_do_not_fit_are_told_before_anything_is_sampled():
    """Half of ten have two objects: "a photo of a house and a fish"."""
    stream = make_stream()
    with pytest.raises(ValueError, match="5 of the first 10 prompts cannot .*: too long"):
        stream.check(Short())
    stream.check(ToyBackbone())
    stream.prompts.costly = True  # a language model's
    stream.check(Short())
