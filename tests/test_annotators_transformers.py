"""ovseg.annotators.transformers: real loading code, random weights."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_transformers as tiny
import torch
import yaml
from toy_data import data_module, write_dataset

from ovseg.__main__ import main
from ovseg.annotators.transformers import InstanceAnnotator, SemanticAnnotator
from ovseg.data.live import LiveStream
from ovseg.data.prompts import TemplatePrompts
from ovseg.structures import DiffusionSample, Entities
from ovseg.vocabulary import Vocabulary

VOC = Vocabulary.load("voc", "1")
CLASS_OF = [1, 18, 0, 11, 7, 12]
"""VOC's class of each tiny label; it has no zebra."""
KNOWN = sorted(set(CLASS_OF) - {0})


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("transformers")
    models = {**tiny.QUERIES, "segformer": tiny.segformer}
    return {name: tiny.save(build, root / name, "mit") for name, build in models.items()}


def sample(height: int, width: int, ids: list[list[int]]) -> DiffusionSample:
    drawn = torch.Generator().manual_seed(3)
    shape = (len(ids), 3, height, width)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn)
    class_ids = torch.tensor(ids)
    entities = Entities(torch.zeros(*class_ids.shape, 4), class_ids, class_ids > 0)
    return DiffusionSample([], images, torch.zeros(0), torch.zeros(0), entities)


def bound(kind, folder: str, vocabulary: Vocabulary = VOC, **options):
    annotator = kind(folder, classes="all", **options)
    with pytest.warns(UserWarning, match="has no label for .*: never found"):
        annotator.bind(vocabulary)
    return annotator


def answering(annotator, monkeypatch, count: int) -> SimpleNamespace:
    """Let the model answer by queries of every label, in the shapes of its own answer."""
    output, seen = annotator.run(sample(64, 64, [[1]] * count).images)
    drawn = torch.Generator().manual_seed(5)
    shapes = (output.class_queries_logits.shape, output.masks_queries_logits.shape)
    labels, masks = (4 * torch.randn(shape, generator=drawn) for shape in shapes)
    answer = SimpleNamespace(
        class_queries_logits=labels, masks_queries_logits=masks, patch_offsets=None
    )
    monkeypatch.setattr(annotator, "run", lambda images: (answer, seen))
    return answer


# Where the size of the image is that at which a processor thresholds masks, both must agree: its
# own 384 for Mask2Former, the masks' for MaskFormer, the input's for EoMT. OneFormer's own takes
# logits for probabilities, so MaskFormer's reads it.
PLACES = {"mask2former": 384, "maskformer": 16, "oneformer": 16}


@pytest.mark.parametrize("name", PLACES)
def test_instances_are_those_of_the_processor(name, folders, monkeypatch):
    from transformers import Mask2FormerImageProcessorPil, MaskFormerImageProcessorPil

    side = PLACES[name]
    seen = sample(side, side, [KNOWN] * 4)
    annotator = bound(InstanceAnnotator, folders[name])
    answer = answering(annotator, monkeypatch, 4)
    annotation = annotator.annotate(seen)
    kind = Mask2FormerImageProcessorPil if name == "mask2former" else MaskFormerImageProcessorPil
    results = kind().post_process_instance_segmentation(
        answer, target_sizes=[(side, side)] * 4, return_binary_maps=True
    )
    total = 0
    for row, result in enumerate(results):
        masks, scores = torch.zeros(len(KNOWN), side, side), torch.zeros(len(KNOWN))
        best = torch.zeros(side, side)
        for mask, facts in zip(result["segmentation"], result["segments_info"], strict=False):
            if class_id := CLASS_OF[facts["label_id"]]:
                place = KNOWN.index(class_id)
                masks[place] = masks[place].maximum(mask)
                scores[place] = max(scores[place], facts["score"])
                best = best.maximum(mask * facts["score"])
                total += 1
        assert torch.equal(annotation.masks[row] >= 0.5, masks > 0)
        torch.testing.assert_close(annotation.scores[row], scores, atol=2e-6, rtol=0)
        assert torch.equal(annotation.found[row], scores > 0)
        assert torch.equal(annotation.instances[row] > 0, best > 0)
        if best.any():  # number 1 is the best of all
            assert torch.equal(annotation.instances[row] == 1, best == best.max())
    assert total >= 8 and annotation.instances.dtype == torch.int64


@pytest.mark.parametrize("shape", [(64, 64), (48, 64), (96, 64)])
def test_eomt_without_its_padding(shape, folders, monkeypatch):
    seen = sample(*shape, [KNOWN] * 3)
    annotator = bound(InstanceAnnotator, folders["eomt"])
    answer = answering(annotator, monkeypatch, 3)
    annotation = annotator.annotate(seen)
    results = annotator.processor.post_process_instance_segmentation(
        answer, [shape] * 3, threshold=0.5
    )
    total = 0
    for row, result in enumerate(results):
        scores = torch.zeros(len(KNOWN))
        for facts in result["segments_info"]:
            if class_id := CLASS_OF[facts["label_id"]]:
                place = KNOWN.index(class_id)
                scores[place] = max(scores[place], facts["score"])
                visible = result["segmentation"] == facts["id"]  # others may lie over it
                assert (annotation.masks[row, place][visible] >= 0.5).all()
                total += 1
        torch.testing.assert_close(annotation.scores[row], scores, atol=2e-6, rtol=0)
    assert total >= 6


@pytest.mark.parametrize("name", [*PLACES, "eomt", "segformer"])
def test_probabilities_are_those_of_the_processor(name, folders, monkeypatch):
    side = PLACES.get(name, 64)
    images = sample(side, side, [[1], [1]]).images
    annotator = bound(SemanticAnnotator, folders[name])
    if name == "segformer":
        output = annotator.run(images)[0]
    else:
        output = answering(annotator, monkeypatch, 2)
    ours = annotator.probabilities(images)
    processor = getattr(annotator.processor, "image_processor", annotator.processor)
    maps = processor.post_process_semantic_segmentation(
        output, target_sizes=[(side, side)] * 2, return_segmentation_scores=True
    )
    theirs = torch.stack([result.segmentation_scores for result in maps])
    if name == "segformer":
        theirs = theirs.softmax(dim=1)
    else:
        theirs = theirs / theirs.sum(dim=1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(ours.argmax(dim=1), torch.stack([r.segmentation for r in maps]))


def test_labels_of_one_class_are_added_and_foreign_ones_compete(folders, tmp_path, monkeypatch):
    classes = [
        {"key": "sofa", "synonyms": ["couch", "car"], "color": [1, 0, 0]},
        {"key": "dog", "color": [2, 0, 0]},
        {"key": "yak", "color": [3, 0, 0]},
    ]
    path = tmp_path / "few.yaml"
    path.write_text(yaml.safe_dump({"name": "few", "classes": classes, "splits": {"1": ["yak"]}}))
    annotator = bound(
        SemanticAnnotator, folders["maskformer"], Vocabulary.load(path), min_score=0.01, min_area=0
    )
    answering(annotator, monkeypatch, 2)
    seen = sample(48, 64, [[2, 1, 3], [1, 0, 2]])
    annotation = annotator.annotate(seen)
    p = annotator.probabilities(seen.images)
    rivals = torch.stack([p[:, 1] + p[:, 4], p[:, 5], p[:, 0], p[:, 2], p[:, 3]], dim=1)
    chosen = rivals.argmax(dim=1)
    for row, places in enumerate([[1, 0, None], [0, None, 1]]):
        for k, place in enumerate(places):
            region = chosen[row] == (-1 if place is None else place)
            assert torch.equal(annotation.masks[row, k] >= 0.5, region)
            assert annotation.found[row, k].item() == bool(region.any())
            if region.any():
                mean = rivals[row, place][region].mean()
                torch.testing.assert_close(annotation.scores[row, k], mean)
    assert annotation.found.any() and annotation.instances is None


@pytest.mark.parametrize("name", [*tiny.QUERIES, "segformer"])
@pytest.mark.parametrize("kind", [InstanceAnnotator, SemanticAnnotator])
def test_a_batch_is_its_images_one_by_one(name, kind, folders):
    if name == "segformer" and kind is InstanceAnnotator:
        pytest.skip("SegFormer finds no instances")
    annotator = bound(kind, folders[name], min_score=0.1)
    whole = sample(48, 64, [[1, 18, 7], [11, 12, 0], [12, 7, 1]])
    together = annotator.annotate(whole)
    for row in range(3):
        one = slice(row, row + 1)
        output, several = (annotator.run(i)[0] for i in (whole.images[one], whole.images))
        for mine, theirs in zip(output.values(), several.values(), strict=True):
            if isinstance(mine, torch.Tensor):
                torch.testing.assert_close(mine, theirs[one], atol=1e-3, rtol=1e-3)
        entities = Entities(*(part[one] for part in vars(whole.entities).values()))
        alone = annotator.annotate(replace(whole, images=whole.images[one], entities=entities))
        torch.testing.assert_close(alone.masks, together.masks[one], atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.scores, together.scores[one], atol=1e-4, rtol=0)
        assert torch.equal(alone.found, together.found[one])
    assert together.masks.shape == (3, 3, 48, 64)
    assert together.masks.min() >= 0 and together.masks.max() <= 1
    assert not together.found[1, 2] and (together.masks[1, 2] == 0).all()  # padding


def test_it_is_asked_for_seen_classes_and_says_what_it_was_trained_on(folders, monkeypatch):
    annotator = InstanceAnnotator(folders["eomt"])
    with pytest.warns(UserWarning) as caught:
        annotator.bind(VOC)
    (line,) = [str(warning.message) for warning in caught]
    assert "bicycle, bird, boat" in line and "aeroplane" not in line and "\n" not in line
    assert "train" not in line  # unseen, so it is not asked for
    facts = annotator.describe()
    assert facts["requested_classes"] == [1, 11] and facts["trained_on"] == KNOWN
    assert facts["licence"] == "mit" and facts["revision"] is None and facts["min_score"] == 0.5
    assert json.dumps(facts) and len(facts["digest"]) == 16
    assert facts["source"] == f"transformers:{folders['eomt']}"
    seen = sample(64, 64, [[1, 18, 7], [11, 12, 7]])
    other = bound(InstanceAnnotator, folders["eomt"])
    answering(annotator, monkeypatch, 2)
    answering(other, monkeypatch, 2)
    some, every = annotator.annotate(seen), other.annotate(seen)
    asked = torch.tensor([[True, False, False], [True, False, False]])
    assert torch.equal(some.found, every.found & asked) and every.found[~asked].any()
    assert (some.masks[~some.found] == 0).all()
    assert not annotator.training and not any(p.requires_grad for p in annotator.parameters())


def test_whatever_decides_its_masks_is_described(folders):
    made = [
        bound(InstanceAnnotator, folders["eomt"]),
        bound(InstanceAnnotator, folders["eomt"], min_score=0.4),
        bound(SemanticAnnotator, folders["eomt"]),
        bound(SemanticAnnotator, folders["eomt"], min_area=0.1),
        bound(SemanticAnnotator, folders["eomt"], min_score=0.4),
    ]
    facts = [json.dumps(annotator.describe()) for annotator in made]
    assert len(set(facts)) == len(facts)


def test_what_cannot_be_used(folders):
    with pytest.raises(ValueError, match="model of type segformer; InstanceAnnotator takes mask2"):
        InstanceAnnotator(folders["segformer"])
    with pytest.raises(ValueError, match="min_score .* got 1.5"):
        InstanceAnnotator(folders["eomt"], min_score=1.5)
    with pytest.raises(ValueError, match="min_area .* got 1"):
        SemanticAnnotator(folders["eomt"], min_area=1)
    annotator = InstanceAnnotator(folders["eomt"])
    with pytest.raises(ValueError, match="bind the annotator"):
        annotator.annotate(sample(64, 64, [[1]]))
    clipart = Vocabulary.load("clipart")
    annotator.labels = ["zebra", "yak"]
    with pytest.raises(ValueError, match="labels for none of the seen classes .* has zebra, yak"):
        annotator.bind(clipart)


def test_images_in_pieces_are_refused(tmp_path):
    folder = tiny.save(tiny.eomt, tmp_path)
    path = tmp_path / "preprocessor_config.json"
    changes = {"do_pad": False, "do_split_image": True}
    changes["size"] = {"shortest_edge": 64, "longest_edge": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    annotator = bound(SemanticAnnotator, folder)
    assert annotator.probabilities(sample(32, 32, [[1]]).images).shape == (1, 6, 32, 32)
    with pytest.raises(ValueError, match="cuts images of 64 x 32 pixels into several"):
        annotator.probabilities(sample(32, 64, [[1]]).images)


def test_a_dataset_with_instances(folders, tmp_path):
    stream = LiveStream(
        TemplatePrompts({1: 1}, ["car", "cat"]),
        InstanceAnnotator(folders["eomt"], classes="all", min_score=0.01),
        3,
        shard_size=4,
    )
    with pytest.warns(UserWarning, match="never found"):
        data = data_module(predict={"data": stream})
        write_dataset(tmp_path, data)
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    car = Vocabulary.load("clipart").id_of("car")
    assert manifest["annotator"]["trained_on"] == [car] == manifest["requested_classes"]
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        assert sum(name.endswith("instances.png") for name in tar.getnames()) == 3


def test_the_example_replaces_the_annotator_alone(capfd):
    folder = Path(__file__).parents[1] / "configs" / "annotated"
    stage, layer = folder / "voc_sd15.yaml", folder / "voc_sd15_mask2former.yaml"
    printed = []
    for layers in (["-c", str(stage)], ["-c", str(stage), "-c", str(layer)]):
        with pytest.raises(SystemExit):
            main(["predict", *layers, "--print_config"])
        printed.append(yaml.safe_load(capfd.readouterr().out))
    streams = [config["data"]["init_args"]["predict"]["train"]["init_args"] for config in printed]
    annotators = [stream.pop("annotator") for stream in streams]
    assert printed[0] == printed[1]
    assert annotators[1]["class_path"] == "ovseg.annotators.transformers.InstanceAnnotator"
    assert annotators[1]["init_args"]["classes"] == "seen"
    assert "checkpoint_folder" not in annotators[1]["init_args"]
