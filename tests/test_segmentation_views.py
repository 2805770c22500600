"""Stage 4: what a segmenter is shown, in training and in tests."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from acme.segmenter import PixelSegmenter
from lightning.pytorch.callbacks import ModelCheckpoint
from test_cli import ROOT, config
from test_segmentation_module import ADAM, Painted, Pictures, own, score
from toy_data import quiet_trainer

from ovseg.__main__ import main
from ovseg.augment import Views
from ovseg.clipart.stream import DrawnScenes
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.data.mixture import MixtureStream
from ovseg.inference import Inference
from ovseg.modules.segmentation import SegmentationModule
from ovseg.segmenters.base import Segmenter
from ovseg.structures import Batch
from ovseg.vocabulary import Vocabulary


class Brightest(Segmenter):
    """Says, for all that it is shown, the mean of the first channel: padding would change it."""

    def forward(self, images):
        said = images[:, 0].float().mean((1, 2)).round().long()
        rows = torch.nn.functional.one_hot(said, self.num_classes).float()
        return rows[:, :, None, None].expand(-1, -1, *images.shape[2:])

    def loss(self, images, labels):
        raise NotImplementedError


class Unequal(Pictures):
    """The same, in batches that are padded to the largest image."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, positions):
        pairs = [self.pictures[p] for p in positions]
        sizes = torch.tensor([labels.shape for _, labels in pairs])
        images = torch.zeros(len(pairs), 3, *sizes.amax(0).tolist(), dtype=torch.uint8)
        truth = torch.full((len(pairs), *sizes.amax(0).tolist()), 255)
        for n, (value, labels) in enumerate(pairs):
            images[n, :, : labels.shape[0], : labels.shape[1]] = value
            truth[n, : labels.shape[0], : labels.shape[1]] = labels
        indices = torch.tensor(positions)
        return Batch(indices=indices, images=images, labels=truth, sizes=sizes)


def test_padding_is_neither_seen_nor_scored(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pictures = [
        (value, torch.randint(0, 5, size, generator=generator))
        for value, size in ((3, (4, 9)), (1, (7, 5)), (2, (7, 9)), (3, (2, 2)))
    ]
    both, union = torch.zeros(5), torch.zeros(5)
    for said, labels in pictures:
        for label in labels.flatten().tolist():
            both[label] += label == said
            union[said] += 1
            union[label] += label != said
    expected = 100 * both / union
    whole = Unequal(pictures)
    mixed = MixtureStream([Unequal(pictures[:1]), Unequal(pictures[1:])])
    for batch_size, stream in ((1, whole), (2, whole), (4, whole), (1, mixed)):
        source = SyntheticDataModule("clipart", "1", batch_size, test={"val": stream})
        model = SegmentationModule(Brightest, ADAM, vocabulary=source.vocabulary)
        quiet_trainer(tmp_path).test(model, source, verbose=False)
        found = json.loads((tmp_path / "results.json").read_text())["val"]["per_class"]
        ious = [found[source.vocabulary[i].key] for i in range(1, 5)]
        assert ious == pytest.approx(expected[1:].tolist(), abs=1e-3)
        with np.load(tmp_path / "results_images.npz", allow_pickle=False) as arrays:
            areas = arrays["val/areas"][:, 2].sum(-1)
        assert sorted(areas.tolist()) == [4, 35, 36, 63]


def test_a_mixture_keeps_the_sizes_of_its_parts():
    """The third part is of one size, and does not say so."""
    labels = torch.zeros(7, 9, dtype=torch.long)
    parts = [Unequal([(1, labels[:4]), (2, labels)]), Unequal([(3, labels), (4, labels[:, :5])])]
    mixture = MixtureStream([*parts, Pictures(labels[None], labels[None])])
    mixture.bind(Vocabulary.load("clipart"))
    batch = mixture.complete(mixture[range(5)], None)
    values = batch.images[:, 0, 0, 0].tolist()
    expected = {1: [4, 9], 2: [7, 9], 3: [7, 9], 4: [7, 5], 0: [7, 9]}
    assert batch.sizes.tolist() == [expected[value] for value in values]
    assert sorted(values) == sorted(expected) and batch.original_sizes is None
    plain = MixtureStream([Pictures(labels[None], labels[None])])
    plain.bind(Vocabulary.load("clipart"))
    assert plain.complete(plain[[0]], None).sizes is None


def test_every_image_must_have_the_protocols_size(tmp_path):
    """The largest of a batch has it, another not."""
    facts = {"protocol": own(tmp_path, image_size=8)}
    good, small = ((1, torch.zeros(size, dtype=torch.long)) for size in ((8, 8), (6, 8)))
    for batch_size in (1, 2):
        source = SyntheticDataModule("clipart", "1", batch_size, test={"val": Unequal([good] * 2)})
        model = SegmentationModule(Brightest, ADAM, vocabulary=source.vocabulary, **facts)
        quiet_trainer(tmp_path).test(model, source, verbose=False)
        source.test["val"] = Unequal([good, small])
        with pytest.raises(ValueError, match="of 8 x 8 pixels, those of the test stream have 6 x"):
            quiet_trainer(tmp_path).test(model, source, verbose=False)


def test_inference_is_an_argument_and_recorded(tmp_path):
    labels = torch.randint(0, 21, (3, 8, 9), generator=torch.Generator().manual_seed(0))
    seen = Inference(crop=4, stride=3, flips=True)
    found = score(tmp_path, labels, labels, inference=seen)
    assert found["seen"] == 100 and found["protocol"]["flips"] is True
    assert found["inference"] == {"crop": 4, "stride": 3, "flips": True, "scales": [1.0]}
    assert score(tmp_path, labels, labels)["inference"]["crop"] is None
    with pytest.raises(ValueError, match="flips is True, but False in protocol clipart_1"):
        score(tmp_path, labels, labels, protocol="clipart_1", inference=seen)


def test_labels_are_ignored_at_their_borders(tmp_path):
    class Kept(Painted):
        def loss(self, images, labels):
            self.labels = labels
            return images.float().sum() * 0

    facts = {"vocabulary": Vocabulary.load("clipart")}
    model = SegmentationModule(Kept, ADAM, ignore_band=1, **facts)
    labels = torch.tensor([[[1, 1, 1, 2, 2, 2]]])
    images = torch.zeros(1, 3, 1, 6, dtype=torch.uint8)
    model.log = lambda *_, **__: None
    model.training_step(Batch(indices=torch.tensor([0]), images=images, labels=labels), 0)
    assert model.segmenter.labels.tolist() == [[[1, 1, 255, 255, 2, 2]]]
    with pytest.raises(ValueError, match="ignore_band must be >= 0, got -1"):
        SegmentationModule(Kept, ADAM, ignore_band=-1, **facts)


def test_all_of_it_by_yaml(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = config()
    arguments = own["model"]["init_args"]
    segmenter = yaml.safe_load((ROOT / "configs/segmenters/deeplabv3_small.yaml").read_text())
    losses = "ovseg.losses_segmentation"
    segmenter["init_args"]["loss"] = {
        "class_path": f"{losses}.UnseenWherePresent",
        "init_args": {"loss": {"class_path": f"{losses}.Bootstrapped"}},
    }
    views = {"transforms": [{"type": "RandomCrop", "crop_size": [32, 48]}, {"type": "RandomFlip"}]}
    arguments |= {
        "segmenter": segmenter,
        "ignore_band": 1,
        "augment": {"class_path": "ovseg.augment_mmseg.MMSegAugmentation", "init_args": views},
        "inference": {
            "class_path": "ovseg.inference.Inference",
            "init_args": {"crop": 48, "stride": 32, "scales": [1.0, 1.5]},
        },
    }
    views["transforms"][1]["prob"] = 0.5
    own["trainer"]["default_root_dir"] = "run"
    scenes = own["data"]["init_args"]["train"]
    own["data"]["init_args"]["test"] = {
        "drawn": {**scenes, "init_args": {"size": 2, "seed": 5, "objects": [2]}}
    }
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    own["trainer"] |= {"enable_checkpointing": True, "callbacks": [callback]}
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(own))
    assert main(["fit", "-c", "stage.yaml", "--then_test", "true"]) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())["drawn"]["inference"]
    assert found == {"crop": 48, "stride": 32, "flips": False, "scales": [1.0, 1.5]}
    (checkpoint,) = Path("run").rglob("*.ckpt")
    assert main(["test", "-c", "stage.yaml", f"--ckpt_path={checkpoint}"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("IoU of each class") == 2
    assert "Test metric" not in printed  # Lightning's table of the same numbers


def test_windows_and_scales_stand_beside_the_figures(tmp_path, capsys):
    labels = torch.randint(0, 21, (3, 8, 9), generator=torch.Generator().manual_seed(0))
    seen = Inference(crop=4, stride=3, scales=[1, 1.5])
    for inference, words in (
        (seen, ", seen in windows of 4 pixels every 3 and scaled by 1, 1.5"),
        (Inference(), ""),
        (None, ""),
    ):
        score(tmp_path, labels, labels, protocol=own(tmp_path), inference=inference)
        said = f"Test images are scored at their own size, unmirrored{words}.\n"
        assert said in capsys.readouterr().out
        assert f"| **Painted{words}** | not given |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
@pytest.mark.parametrize("verb", ["fit", "test"])
def test_weights_of_another_dtype_than_the_images_are_refused(tmp_path, verb, precision):
    scenes = DrawnScenes(4, seed=1, classes="seen")
    source = SyntheticDataModule("clipart", "1", 2, train=scenes, test={"drawn": scenes})
    model = SegmentationModule(PixelSegmenter, ADAM, vocabulary=source.vocabulary)
    trainer = quiet_trainer(tmp_path, precision=precision, max_steps=1)
    with pytest.raises(ValueError, match=f"trainer.precision {precision} makes .* 32-true, or a"):
        getattr(trainer, verb)(model, source)
    quiet_trainer(tmp_path, precision="bf16-mixed", max_steps=1).fit(model, source)


class Counted(Views):
    """Views that are numbers of steps."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def forward(self, images, labels, step, rank=0):
        self.steps.append(step)
        return images, labels


def counted(folder, accumulate, stop=100, checkpoint=None) -> tuple[list[int], int]:
    """Train two epochs of five batches, or to a checkpoint; return the views, and the steps."""
    scenes = DrawnScenes(10, seed=1, classes="seen")
    source = SyntheticDataModule("clipart", "1", 2, train=scenes)
    facts = {"vocabulary": source.vocabulary, "augment": Counted()}
    model = SegmentationModule(PixelSegmenter, ADAM, **facts)
    saver = ModelCheckpoint(folder, filename="stop", every_n_train_steps=stop)
    limits = {"max_epochs": 2, "accumulate_grad_batches": accumulate}
    limits["max_steps"] = -1 if checkpoint else stop
    trainer = quiet_trainer(folder, enable_checkpointing=True, callbacks=[saver], **limits)
    trainer.fit(model, source, ckpt_path=checkpoint, weights_only=True)
    return model.augment.steps, trainer.global_step


@pytest.mark.parametrize(
    ("accumulate", "steps", "stops"),
    [(1, 10, [3]), (2, 6, [2, 3]), (4, 4, [3])],  # inside an epoch, at its end, later
)
def test_every_batch_of_a_step_has_views_of_its_own(tmp_path, accumulate, steps, stops):
    assert counted(tmp_path, accumulate) == (list(range(10)), steps)
    for stop in stops:
        first, reached = counted(tmp_path / str(stop), accumulate, stop)
        rest, _ = counted(tmp_path / str(stop), accumulate, stop, tmp_path / f"{stop}/stop.ckpt")
        assert reached == stop and first + rest == list(range(10))
