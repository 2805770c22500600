"""ovseg.annotators.sam: GroundingDINO and Segment Anything, real loading code, random weights."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
import tiny_transformers as tiny
import torch

from ovseg.annotators.sam import SamAnnotator
from ovseg.structures import DiffusionSample, Entities, Entity, Request
from ovseg.vocabulary import Vocabulary

VOC = Vocabulary.load("voc", "1")
NAMES = [["cat", "potted plant", "dog"], ["dog"], ["tree"], ["potted plant", "cat"]]
TORCHVISION = importlib.util.find_spec("torchvision") is not None


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("sam")
    words = ["cat", "dog", "potted", "plant", "tree"]
    detector = tiny.grounding_dino(root / "detector", words)
    return {"detector": detector, "segmenter": tiny.sam(root / "segmenter")}


def sample(names: list[list[str]] = NAMES) -> DiffusionSample:
    images = torch.randint(
        0,
        256,
        (len(names), 3, 48, 64),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(3),
    )
    ids = {c.name: c.id for c in VOC.classes}
    entities = [tuple(Entity(ids.get(name, 0), name) for name in some) for some in names]
    requests = [Request(i, i, ", ".join(some), entities[i]) for i, some in enumerate(names)]
    class_ids = torch.zeros(len(names), max(map(len, names)), dtype=torch.long)
    valid = class_ids > 0
    for row, some in enumerate(entities):
        class_ids[row, : len(some)] = torch.tensor([entity.class_id for entity in some])
        valid[row, : len(some)] = True
    text = torch.zeros(*class_ids.shape, 4)
    return DiffusionSample(
        requests, images, torch.zeros(0), torch.zeros(0), Entities(text, class_ids, valid)
    )


def annotator(folders, **options) -> SamAnnotator:
    made = SamAnnotator(**{**folders, "classes": "all", **options})
    made.bind(VOC)
    return made


def test_boxes_are_those_of_the_processor(folders):
    seen = sample()
    made = annotator(folders)
    processor, model = made.detector.processor, made.detector.model
    found = made.detector(seen.images, NAMES, 0.9, 0.6)
    for image, names, boxes in zip(seen.images, NAMES, found, strict=True):
        inputs = processor(images=[image.numpy()], text=[names], return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        (theirs,) = processor.post_process_grounded_object_detection(
            output, inputs["input_ids"], 0.9, 0.6, target_sizes=[(48, 64)]
        )
        # the text of one image, word by word; a full stop ends each name
        tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
        owner, place = [], 0
        for token in tokens:
            owner.append(place if token in "cat dog potted plant tree".split() else None)
            place += token == "."
        kept = []
        for query, odds in enumerate(output.logits[0].sigmoid()):
            if odds.max() > 0.9:
                said = [(odds[i].item(), k) for i, k in enumerate(owner) if k is not None]
                kept.append((query, *max(said)))
        assert len(kept) == len(theirs["boxes"])  # the same boxes pass the first threshold
        corners = [c for c, (_, p, _) in zip(theirs["boxes"], kept, strict=True) if p > 0.6]
        kept = [(p, name) for _, p, name in kept if p > 0.6]
        assert boxes.name == [name for _, name in kept] and kept
        limits = torch.tensor([64.0, 48.0, 64.0, 48.0])
        expected = torch.stack(corners).clamp(min=0).minimum(limits)
        torch.testing.assert_close(boxes.corners, expected, atol=1e-3, rtol=1e-4)
        assert boxes.score.tolist() == pytest.approx([p for p, _ in kept], abs=1e-4)


def test_masks_are_those_of_the_model(folders):
    from PIL import Image
    from transformers import SamImageProcessorPil, SamModel, SamProcessor

    segmenter = annotator(folders).segmenter
    image = sample().images[0]
    boxes = torch.tensor([[4.0, 6.0, 40.0, 30.0], [0.0, 0.0, 63.0, 47.0]])
    with torch.no_grad():
        masks = segmenter(image, boxes)
    processor = SamProcessor(SamImageProcessorPil.from_pretrained(folders["segmenter"]))
    model = SamModel.from_pretrained(folders["segmenter"])
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    for box, mask in zip(boxes, masks, strict=True):
        inputs = processor(picture, input_boxes=[[box.tolist()]], return_tensors="pt")
        with torch.no_grad():
            output = model(
                pixel_values=inputs["pixel_values"],
                input_boxes=inputs["input_boxes"].float(),
                multimask_output=False,
            )
        (theirs,) = processor.post_process_masks(
            output.pred_masks,
            inputs["original_sizes"],
            inputs["reshaped_input_sizes"],
            binarize=False,
        )
        torch.testing.assert_close(mask, theirs[0, 0].sigmoid(), atol=1e-4, rtol=0)
        assert mask.std() > 0.01
    assert masks.shape == (2, 48, 64) and segmenter(image, boxes[:0]).shape == (0, 48, 64)


def test_a_name_has_the_masks_of_its_boxes(folders, monkeypatch):
    made = annotator(folders)
    boxes = made.detector(sample().images, [["cat", "dog"]] * 4, 0.5, 0.5)[0]
    corners = torch.tensor([[0.0, 0, 30, 20], [10, 10, 40, 30], [50, 40, 60, 47], [0, 0, 0, 0]])
    score = torch.tensor([0.6, 0.9, 0.7, 0.95])
    found = [boxes._replace(corners=corners, score=score, name=[0, 0, 1, 1])]
    monkeypatch.setattr(made.detector, "forward", lambda *a: found)

    def filled(image, boxes):
        masks = torch.zeros(len(boxes), *image.shape[-2:])
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 0.8
        return masks

    monkeypatch.setattr(made.segmenter, "forward", filled)
    annotation = made.annotate(sample([["dog", "cat"]]))  # in the request's own order
    numbers = torch.zeros(48, 64, dtype=torch.long)
    numbers[:20, :30] = 3  # the worst lies under the others
    numbers[40:47, 50:60] = 2
    numbers[10:30, 10:40] = 1
    assert torch.equal(annotation.instances[0], numbers)
    dog = torch.isin(numbers, torch.tensor([1, 3])).float() * 0.8
    torch.testing.assert_close(annotation.masks[0, 0], dog)
    torch.testing.assert_close(annotation.masks[0, 1], (numbers == 2).float() * 0.8)
    torch.testing.assert_close(annotation.scores, torch.tensor([[0.9, 0.7]]))  # no empty mask's
    assert annotation.found.tolist() == [[True, True]]


def test_a_batch_is_its_images_one_by_one(folders):
    made = annotator(folders, box_threshold=0.9, text_threshold=0.6)
    whole = sample()
    together = made.annotate(whole)
    for row in range(4):
        one = slice(row, row + 1)
        entities = Entities(*(part[one] for part in vars(whole.entities).values()))
        alone = replace(
            whole, requests=whole.requests[one], images=whole.images[one], entities=entities
        )
        alone = made.annotate(alone)
        torch.testing.assert_close(alone.masks, together.masks[one], atol=1e-3, rtol=0)
        torch.testing.assert_close(alone.scores, together.scores[one], atol=1e-4, rtol=0)
        assert torch.equal(alone.found, together.found[one])
    assert together.masks.shape == (4, 3, 48, 64) and together.instances.dtype == torch.int64
    assert together.found[[0, 1, 3]].any(dim=1).all()
    assert not together.found[2].any()  # no class of the vocabulary
    assert (together.masks[~together.found] < 0.5).all()


def test_names_beyond_one_text_are_asked_for_by_another(folders, monkeypatch):
    """[CLS] cat. potted plant. [SEP] are seven tokens."""
    detector, images = annotator(folders).detector, sample().images[:1]
    monkeypatch.setattr(detector.model.config, "max_text_len", 7)
    whole = detector(images, NAMES[:1], 0.3, 0.2)[0]
    first = detector(images, [["cat", "potted plant"]], 0.3, 0.2)[0]
    second = detector(images, [["dog"]], 0.3, 0.2)[0]
    assert first.name and second.name
    assert whole.name == [*first.name, *(2 for _ in second.name)]
    assert torch.equal(whole.corners, torch.cat([first.corners, second.corners]))
    assert torch.equal(whole.score, torch.cat([first.score, second.score]))


def test_what_it_is_asked_for_and_what_it_knows(folders):
    made = SamAnnotator(**folders, trained_on=["cat", "tv"], box_threshold=0.9)
    made.bind(VOC)
    facts = made.describe()
    assert facts["requested_classes"] == list(VOC.seen)
    assert facts["trained_on"] == [8, 20] and facts["box_threshold"] == 0.9
    assert json.dumps(facts) and facts["detector"]["digest"] in facts["digest"]
    assert annotator(folders).describe()["trained_on"] == []
    found = made.annotate(sample()).found
    assert not found[1].any()  # "dog" is unseen, so nobody asked
    assert not made.training and not any(p.requires_grad for p in made.parameters())
    with pytest.raises(ValueError, match="unknown class 'unicorn'"):
        annotator(folders, trained_on=["unicorn"])


def test_nobody_to_look_for(folders):
    annotation = annotator(folders).annotate(sample([["tree"], ["tree"]]))
    assert not annotation.found.any() and (annotation.masks == 0).all()
    assert annotation.masks.shape == (2, 1, 48, 64) and (annotation.instances == 0).all()


def test_what_cannot_be_used(folders):
    with pytest.raises(ValueError, match="box_threshold is a probability in .* got 0"):
        SamAnnotator(**folders, box_threshold=0)
    with pytest.raises(ValueError, match="is a model of type sam; a detector of names is one of"):
        SamAnnotator(folders["segmenter"], folders["segmenter"])
    with pytest.raises(ValueError, match="type grounding-dino; a segmenter of boxes is one of sam"):
        SamAnnotator(folders["detector"], folders["detector"])
    with pytest.raises(ValueError, match="bind the annotator"):
        SamAnnotator(**folders).annotate(sample())


def test_the_second_version(folders, tmp_path):
    segmenter = tiny.sam2(tmp_path / ("a-long-name-" * 15) / "sam2")
    if not TORCHVISION:
        with pytest.raises(ValueError, match="Missing optional dependencies: torchvision"):
            annotator({**folders, "segmenter": segmenter})
        pytest.skip("transformers prepares images for Segment Anything 2 by torchvision alone")
    made = annotator({**folders, "segmenter": segmenter}, box_threshold=0.9)
    annotation = made.annotate(sample())
    assert annotation.masks.shape == (4, 3, 48, 64) and annotation.found.any()
