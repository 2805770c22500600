"""SegFormer, MaskFormer and Mask2Former as segmenters: tiny, random, without a network."""

import functools
import json
import pickle
from pathlib import Path

import pytest
import tiny_transformers as tiny
import torch
import yaml
from safetensors.torch import save_file
from toy_data import quiet_trainer

from ovseg.clipart.stream import DrawnScenes
from ovseg.data.datamodule import SyntheticDataModule
from ovseg.losses_segmentation import Bootstrapped, CrossEntropy
from ovseg.modules.segmentation import SegmentationModule
from ovseg.segmenters.folder import load_segmenter, save_segmenter
from ovseg.segmenters.transformers import TransformersSegmenter
from ovseg.vocabulary import Vocabulary

BUILT = {f.__name__: f for f in (tiny.segformer, tiny.maskformer, tiny.mask2former)}
HEADS = {"segformer": "decode_head.classifier", "maskformer": "class_predictor"}
HEADS["mask2former"] = HEADS["maskformer"]
LABELS = len(tiny.LABELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Return the folder of a saved model of each family."""
    root = tmp_path_factory.mktemp("families")
    return {name: tiny.save(build, root / name) for name, build in BUILT.items()}


@pytest.fixture(scope="module", params=list(BUILT))
def kind(request) -> str:
    return request.param


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 4, (2, 5, 7), generator=generator)
    return images, labels.repeat_interleave(8, 1).repeat_interleave(8, 2)


def config(kind: str) -> dict:
    """Return the configuration of a tiny model as YAML has it."""
    from transformers import AutoConfig

    made = BUILT[kind]()[0].config.to_diff_dict()
    given = {k: v for k, v in made.items() if k[0] != "_" and k not in tiny.NAMES}
    if kind == "mask2former":
        given["train_num_points"] = 112
    given = yaml.safe_load(yaml.safe_dump(given))
    assert AutoConfig.for_model(**given).model_type == kind
    return given


def test_saved_and_loaded_it_is_the_same(kind, folders, batch, tmp_path):
    vocabulary = Vocabulary.load("clipart", "1")
    torch.manual_seed(0)
    made = TransformersSegmenter(vocabulary.num_classes, model=folders[kind]).eval()
    save_segmenter(made, tmp_path / "folder", vocabulary)
    again = load_segmenter(tmp_path / "folder").segmenter
    with torch.no_grad():
        assert torch.equal(again(batch[0]), made(batch[0]))


def test_contract(kind, batch):
    images, labels = batch
    torch.manual_seed(0)
    net = TransformersSegmenter(4, config=config(kind))
    loss = net.loss(images, labels)
    loss.backward()
    assert loss.ndim == 0 and loss.item() > 0
    # DDP waits for the gradient of everything that can be trained
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    assert sum(not p.requires_grad for p in net.parameters()) == (0 if kind == "segformer" else 2)
    net.eval()
    with torch.no_grad():
        together = net(images)
        assert together.shape == (2, 4, 40, 56) and together.dtype == torch.float32
        alone = torch.cat([net(image[None].float()) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    net.train().zero_grad()
    nothing = net.loss(images, torch.full_like(labels, 255))
    nothing.backward()
    assert nothing.item() == 0
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_pretrained_weights_with_a_new_head(kind, folders, batch, capsys):
    net = TransformersSegmenter(4, model=folders[kind])
    line = capsys.readouterr().out
    stored = type(net.model).from_pretrained(folders[kind]).state_dict()
    own = net.model.state_dict()
    head = [key for key in own if key.startswith((HEADS[kind], "criterion"))]
    assert f"{len(own) - len(head)} of {len(own)} tensors loaded" in line
    assert f"newly made: {', '.join(sorted(head))}; not used: none" in line
    for key, value in own.items():
        if key not in head:
            assert torch.equal(value, stored[key]), key
    assert net.training and net(batch[0]).shape[1] == 4
    assert all(p.requires_grad for n, p in net.named_parameters() if "layernorm." not in n)
    again = TransformersSegmenter(LABELS, model=folders[kind])
    assert f"{len(own)} of {len(own)} tensors loaded; newly made: none" in capsys.readouterr().out
    assert torch.equal(again.model.state_dict()[head[0]], stored[head[0]])


def test_what_it_says_of_its_training(kind, tmp_path):
    names = ["background", *tiny.LABELS[1:]]
    folder = tiny.save(BUILT[kind], tmp_path / "named")
    path = Path(folder) / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "id2label": dict(enumerate(names))}))
    taken = TransformersSegmenter(LABELS, model=folder).learnt_from
    assert taken == {"classes": names[1:], "trained_on": names[1:]}
    assert TransformersSegmenter(4, model=folder).learnt_from == {"trained_on": names[1:]}
    nameless = {str(number): f"LABEL_{number}" for number in range(LABELS)}
    path.write_text(json.dumps({**stored, "id2label": nameless}))
    assert TransformersSegmenter(LABELS, model=folder).learnt_from == {"trained_on": ["*"]}
    assert TransformersSegmenter(4, config=config(kind)).learnt_from == {}


def test_an_encoder_without_a_decoder(tmp_path, capsys):
    """As nvidia/mit-b0 is: a SegFormer's encoder with ImageNet's classifier."""
    from transformers import SegformerForImageClassification

    model = SegformerForImageClassification(tiny.segformer()[0].config)
    model.save_pretrained(tmp_path)
    assert TransformersSegmenter(4, model=str(tmp_path)).learnt_from == {}
    line = capsys.readouterr().out
    assert "newly made: decode_head." in line and "more; not used: classifier.bias" in line
    torch.testing.assert_close(
        TransformersSegmenter(4, model=str(tmp_path)).model.segformer.state_dict(),
        model.segformer.state_dict(),
    )


def test_segformer_takes_a_loss(folders, batch):
    images, labels = batch
    net = TransformersSegmenter(4, model=folders["segformer"], loss=Bootstrapped()).eval()
    with torch.no_grad():
        torch.testing.assert_close(net.loss(images, labels), Bootstrapped()(net(images), labels))


@pytest.mark.parametrize("name", BUILT)
def test_fit_and_test(name, tmp_path):
    """The training loss falls, and `test` runs; the query families are matched in each step."""
    torch.manual_seed(0)
    scenes = DrawnScenes(8, seed=1)
    data = SyntheticDataModule("clipart", "1", 4, train=scenes, test={"drawn": DrawnScenes(2, 5)})
    model = SegmentationModule(
        functools.partial(TransformersSegmenter, config=config(name)),
        functools.partial(torch.optim.AdamW, lr=1e-3),
        vocabulary=data.vocabulary,
        unseen_masks=True,
    )
    scenes.bind(data.vocabulary)
    before = model.segmenter.eval().loss(*scenes_batch(scenes)).item()
    trainer = quiet_trainer(tmp_path, max_steps=8)
    trainer.fit(model.train(), data)
    assert model.segmenter.eval().loss(*scenes_batch(scenes)).item() < before
    (scores,) = trainer.test(model, data, verbose=False)
    assert scores["test/miou"] >= 0


def scenes_batch(scenes):
    batch = scenes[list(range(4))]
    torch.manual_seed(1)  # Mask2Former draws points
    return batch.images, batch.labels


def test_refusals(folders, tmp_path):
    with pytest.raises(ValueError, match="exactly one of model"):
        TransformersSegmenter(4)
    with pytest.raises(ValueError, match="exactly one of model"):
        TransformersSegmenter(4, model="a/b", config={"model_type": "segformer"})
    with pytest.raises(ValueError, match="takes segformer, .* is of type bert"):
        TransformersSegmenter(4, config={"model_type": "bert"})
    with pytest.raises(ValueError, match="of type None"):
        TransformersSegmenter(4, config={})
    with pytest.raises(ValueError, match="cannot build this segformer: .*depths"):
        TransformersSegmenter(4, config={"model_type": "segformer", "depths": "many"})
    with pytest.raises(ValueError, match="maskformer has a loss of its own"):
        TransformersSegmenter(4, model=folders["maskformer"], loss=CrossEntropy())
    with pytest.raises(FileNotFoundError, match="give a folder or a Hub id"):
        TransformersSegmenter(4, model="no_such_folder")
    with pytest.raises(ValueError, match="three numbers"):
        TransformersSegmenter(4, config={"model_type": "segformer"}, std=(1.0, 0.0, 1.0))


def test_weights_of_something_else_are_refused(folders, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    config = (tmp_path / f"{folders['segformer']}/config.json").read_text()
    (broken / "config.json").write_text(config)
    (broken / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="cannot load the Segformer.*safetensors"):
        TransformersSegmenter(4, model=str(broken))
    save_file({"decode_head.classifier.bias": torch.zeros(6)}, broken / "model.safetensors")
    with pytest.raises(ValueError, match="not those of a segformer: .* for one"):
        TransformersSegmenter(4, model=str(broken))
