"""ovseg.data.pseudo: labels of an annotator for images that nobody labelled."""

import functools
import json

import pytest
import torch
from acme.backbone import ToyBackbone
from acme.segmenter import PixelSegmenter
from toy_data import contents, data_module, live_stream, quiet_trainer, write_dataset

from ovseg.__main__ import main
from ovseg.annotators.base import Annotator
from ovseg.clipart.stream import DrawnScenes
from ovseg.data.base import IGNORED_UNSEEN, PSEUDO_LABELS, UNSEEN_NAMES
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.found import FoundStream
from ovseg.data.mixture import MixtureStream
from ovseg.data.pseudo import PseudoLabelStream
from ovseg.data.shards import ShardStream
from ovseg.modules.segmentation import SegmentationModule
from ovseg.structures import Annotation, Batch
from ovseg.vocabulary import Vocabulary


class Images(DrawnScenes):
    """Images whose red channel is what `Reader` makes of them."""

    def __init__(self):
        super().__init__(3, 0)

    def __getitem__(self, positions):
        images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
        images[0, 0, :4] = 200  # class 2, sure
        images[0, 0, 4] = 130  # class 2, doubtful
        images[1, 1, :, :2] = 250  # class 5, but too small to be found
        rows = [int(p) for p in positions]
        labels = torch.ones(len(rows), 8, 8, dtype=torch.long)
        return Batch(torch.tensor(rows), images=images[rows], labels=labels)


class Reader(Annotator):
    """Red is class 2, green class 5; found where at least a half of the image shows it."""

    def annotate(self, sample):
        ids = sample.entities.class_ids
        masks = torch.zeros(*ids.shape, *sample.images.shape[-2:])
        for channel, class_id in ((0, 2), (1, 5)):
            masks[ids == class_id] = sample.images[:, channel].float() / 255
        found = (masks > 0.5).flatten(2).float().mean(2) >= 0.5
        return Annotation(masks, masks.flatten(2).amax(2), found)

    def describe(self):
        return {"requested_classes": [2, 5], "trained_on": [5, 7], "source": "reader"}


@pytest.fixture
def vocabulary():
    return Vocabulary.load("clipart", "1")


def bound(stream, vocabulary):
    stream.bind(vocabulary)
    return stream


def test_sure_pixels_are_labels_and_doubtful_ones_ignored(vocabulary):
    stream = bound(PseudoLabelStream(Images(), Reader(), band=0.2), vocabulary)
    batch = stream.complete(stream[[0, 1, 2]], None)
    expected = torch.zeros(3, 8, 8, dtype=torch.long)
    expected[0, :4], expected[0, 4] = 2, 255  # 200 / 255 = 0.78; 130 / 255 = 0.51
    expected[1, :, :2] = 255  # looks like class 5, which was not found: not background
    assert torch.equal(batch.labels, expected)
    assert [[e.class_id for e in r.entities] for r in batch.requests] == [[2], [], []]
    assert batch.found.tolist() == [[True], [False], [False]]
    assert batch.annotation.masks.shape == (3, 1, 8, 8)
    assert stream.taught_classes() == {5}


class Labelled(Images):
    """The same, where somebody has labelled a part: class 7, and background, in the right half."""

    def taught_classes(self):
        return {7}

    def __getitem__(self, positions):
        batch = super().__getitem__(positions)
        labels = torch.full((3, 8, 8), 255)
        labels[:, :, 4:], labels[0, :2, 4:] = 0, 7
        return batch.replace(labels=labels[batch.indices])


def test_labels_that_are_kept_are_completed(vocabulary):
    stream = PseudoLabelStream(Labelled(), Reader(), band=0.2, keep_labels=True)
    batch = bound(stream, vocabulary).complete(stream[[0, 1]], None)
    expected = torch.zeros(2, 8, 8, dtype=torch.long)
    expected[0, :4, :4], expected[0, 4, :4], expected[0, :2, 4:] = 2, 255, 7
    expected[1, :, :2] = 255
    assert torch.equal(batch.labels, expected)
    assert [[e.class_id for e in r.entities] for r in batch.requests] == [[2, 7], []]
    masks = batch.annotation.masks[0]
    assert torch.equal(masks[1], (expected[0] == 7).float()) and not masks[0, :, 4:].any()
    assert batch.annotation.scores[0].tolist() == [pytest.approx(200 / 255), 1.0]
    assert stream.taught_classes() == {5, 7}
    assert stream.describe()["annotator"]["requested_classes"] == [2, 5, 7]


def test_new_views_of_every_epoch_are_labelled(vocabulary):
    class Views(Images):
        fresh = True

        def __getitem__(self, positions):
            batch = super().__getitem__([p % 3 for p in positions])
            dark = torch.tensor([p >= 3 for p in positions])[:, None, None, None]
            return batch.replace(images=batch.images.masked_fill(dark, 0))

    stream = bound(PseudoLabelStream(Views(), Reader(), band=0.2), vocabulary)
    assert stream.fresh and not PseudoLabelStream(Images(), Reader()).fresh
    batch = stream.complete(stream[[0, 3]], None)
    assert (batch.labels[0] == 2).any() and not batch.labels[1].any()


def test_padding_is_not_labelled(vocabulary):
    class Padded(Images):
        def __getitem__(self, positions):
            sizes = torch.tensor([[8, 8], [8, 4], [8, 8]])[list(positions)]
            return super().__getitem__(positions).replace(sizes=sizes)

    stream = bound(PseudoLabelStream(Padded(), Reader()), vocabulary)
    assert len(stream[[0, 2]]) == 2
    with pytest.raises(ValueError, match=r"got \[\[8, 8\], \[8, 4\]\] in one batch: bring them"):
        stream[[0, 1]]


def test_what_taught_the_annotator_counts(vocabulary, monkeypatch):
    describe = Reader.describe
    facts = {"practices": ["taught so"]}
    monkeypatch.setattr(Reader, "describe", lambda self: {**describe(self), **facts})
    stream = bound(PseudoLabelStream(Images(), Reader()), vocabulary)
    assert "taught so" in stream.practices()
    assert stream.describe()["annotator"]["practices"] == ["taught so"]


def test_who_does_not_say_counts_as_taught_all(vocabulary, monkeypatch):
    every = [c.id for c in vocabulary.classes]
    monkeypatch.setattr(Reader, "describe", lambda self: {"source": "reader"})
    stream = bound(PseudoLabelStream(Images(), Reader()), vocabulary)
    assert stream.taught_classes() == set(every)
    assert stream.describe()["annotator"]["trained_on"] == every


def test_images_of_a_mixture(vocabulary):
    stream = bound(PseudoLabelStream(MixtureStream([Images(), Images()]), Reader()), vocabulary)
    stream.check(None)
    batch = stream.complete(stream[[0, 1]], None)  # the first image of each
    alone = bound(PseudoLabelStream(Images(), Reader()), vocabulary)
    single = alone.complete(alone[[0]], None)
    assert torch.equal(batch.labels, single.labels.expand(2, -1, -1)) and len(stream) == 6


def test_written_as_shards_it_is_read_again(tmp_path, vocabulary):
    stream = PseudoLabelStream(Images(), Reader(), shard_size=2)
    data = SyntheticDataModule("clipart", "1", 2, predict={"data": stream})
    folder = write_dataset(tmp_path / "data", data)
    live = stream.complete(stream[[0, 1, 2]], None)
    batch = bound(ShardStream(str(folder)), vocabulary)[[0, 1, 2]]
    for name in ("images", "labels", "found"):
        assert torch.equal(getattr(batch, name), getattr(live, name)), name
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["counts"]["classes"][vocabulary[2].key]["found"] == 1
    assert facts["latents_digest"] is None and facts["band"] == 0.4
    assert "A model made the masks" in (folder / "card.md").read_text()
    assert main(["status", str(folder)]) == 0
    assert main(["refilter", str(folder), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "dataset.json").read_text())
    assert again["practices"] == facts["practices"] == ["pseudo-labels of real images"]


def test_soft_masks_need_a_size_and_make_no_other_labels(tmp_path, capfd):
    data = SyntheticDataModule(
        "clipart", "1", 2, predict={"data": PseudoLabelStream(Images(), Reader())}
    )
    with pytest.raises(ValueError, match="without data.backbone there is none: set soft_stride"):
        write_dataset(tmp_path / "data", data, soft=True)
    assert not (tmp_path / "data").exists()
    folder = write_dataset(tmp_path / "data", data, soft=True, soft_stride=1)
    again = ["refilter", str(folder), "--out", str(tmp_path / "again")]
    assert main([*again, "--band", "0.1"]) == 2
    error = capfd.readouterr().err
    assert "has pseudo-labels" in error and "leave band out, or `predict`" in error
    assert not (tmp_path / "again").exists()
    assert main([*again, "--band", "0.4"]) == 0  # as it was


def test_labels_of_a_dataset_say_of_which(tmp_path):
    """A lost shard is made again of the same images alone, wherever they lie."""
    one = write_dataset(tmp_path / "one")
    other = write_dataset(tmp_path / "other", data_module(predict={"data": live_stream(seed=9)}))

    def write(images):
        stream = PseudoLabelStream(images, Reader(), shard_size=4)
        data = SyntheticDataModule("clipart", "1", 2, predict={"data": stream})
        return contents(write_dataset(tmp_path / "labels", data))

    first = write(ShardStream(str(one)))
    (tmp_path / "labels" / "shard-000001.tar").unlink()
    for images in (
        ShardStream(str(other)),
        FoundStream(str(one)),
        ShardStream(str(one), limit=9),
        ShardStream(str(one), max_damaged=0.1),
    ):
        with pytest.raises(ValueError, match=r"holds another dataset \(images\."):
            write(images)
    assert write(ShardStream(str(one.rename(tmp_path / "moved")))) == first


def test_wrong_arguments():
    with pytest.raises(ValueError, match="shard_size must be >= 1, got 0"):
        PseudoLabelStream(Images(), Reader(), shard_size=0)
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\) and band in \[0, 1\)"):
        PseudoLabelStream(Images(), Reader(), band=1.0)
    with pytest.raises(ValueError, match="need no backbone: leave data.backbone out"):
        PseudoLabelStream(Images(), Reader()).check(ToyBackbone())


def test_what_was_done_travels_to_whoever_is_scored_by_a_protocol(tmp_path, vocabulary):
    """Pseudo-labels of real images are refused by an inductive protocol, in training and later."""
    scenes = DrawnScenes(4, seed=1, labelled="seen")
    pseudo = PseudoLabelStream(scenes, Reader(), keep_labels=True)
    assert bound(pseudo, vocabulary).practices() == {PSEUDO_LABELS, IGNORED_UNSEEN}
    writing = SyntheticDataModule("clipart", "1", 2, predict={"data": pseudo})
    made = write_dataset(tmp_path / "made", writing)
    train = MixtureStream([DrawnScenes(4, seed=2, classes="seen"), ShardStream(str(made))])
    assert bound(train, vocabulary).practices() == {PSEUDO_LABELS, IGNORED_UNSEEN}
    assert not train.generated
    sgd = functools.partial(torch.optim.SGD, lr=0.01)

    def parts(**arguments):
        test = {"drawn": DrawnScenes(2, seed=3)}
        data = SyntheticDataModule("clipart", "1", 4, train=train, test=test)
        module = SegmentationModule(PixelSegmenter, sgd, vocabulary=data.vocabulary, **arguments)
        return module, data

    with pytest.raises(ValueError, match="data.train has pseudo-labels of real images, which"):
        quiet_trainer(tmp_path, max_steps=1).fit(*parts(protocol="clipart_1"))
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(*parts())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="the checkpoint's training has pseudo-labels of real"):
        quiet_trainer(tmp_path).test(*parts(protocol="clipart_1"), tmp_path / "model.ckpt")


def test_labels_of_generated_images_are_no_pseudo_labels_of_real_ones(tmp_path, vocabulary):
    dataset = ShardStream(str(write_dataset(tmp_path / "made")))
    stream = PseudoLabelStream(dataset, Reader())
    assert bound(stream, vocabulary).practices() == {UNSEEN_NAMES}  # that alone
    assert dataset.generated and stream.describe()["real_images"] is False
