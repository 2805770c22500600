import json

import pytest
import torch
from torch import nn

from ovseg.annotators.mmseg import MMSegAnnotator
from ovseg.segmenters.base import Segmenter
from ovseg.segmenters.folder import save_segmenter
from ovseg.structures import DiffusionSample, Entities, to_label_map
from ovseg.vocabulary import Vocabulary


class Colours(Segmenter):
    """Class n where the red channel is n (times a scale)."""

    def __init__(self, num_classes: int, scale: float = 1.0) -> None:
        super().__init__(num_classes)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images):
        ids = torch.arange(self.num_classes).view(1, -1, 1, 1)
        return -self.scale * (images[:, :1].float() - ids).abs()

    def loss(self, images, labels):
        raise NotImplementedError


@pytest.fixture
def words() -> Vocabulary:
    return Vocabulary.load("clipart", "1")


@pytest.fixture
def folder(words, tmp_path):
    save_segmenter(Colours(words.num_classes, 3.0), tmp_path / "annotator", words)
    return str(tmp_path / "annotator")


def sample(ids: list[list[int]], reds: torch.Tensor) -> DiffusionSample:
    images = torch.zeros(len(ids), 3, *reds.shape[-2:], dtype=torch.uint8)
    images[:, 0] = reds
    class_ids = torch.tensor(ids)
    entities = Entities(torch.zeros(*class_ids.shape, 4), class_ids, class_ids > 0)
    return DiffusionSample([], images, torch.zeros(0), torch.zeros(0), entities)


def test_finds_the_requested_classes_alone(folder, words):
    annotator = MMSegAnnotator(folder)
    annotator.bind(words)
    seen, unseen = words.seen[0], words.unseen[0]
    reds = torch.zeros(2, 8, 8, dtype=torch.uint8)
    reds[0, :, :3], reds[0, :, 5:] = seen, unseen
    annotation = annotator.annotate(sample([[seen, unseen], [seen, 0]], reds))
    assert annotation.masks.shape == (2, 2, 8, 8)
    assert annotation.found.tolist() == [[True, False], [False, False]]
    assert (annotation.masks[0, 0] >= 0.5).equal(reds[0] == seen)
    assert not annotation.masks[0, 1].any() and not annotation.masks[1, 1].any()
    # softmax of -3 |d| over the integers around an inner id is p = 1 / (1 + 2 / (e^3 - 1))
    assert 0.85 < annotation.scores[0, 0] < 1
    assert annotation.scores[0, 1] == 0
    assert annotation.masks.min() >= 0 and annotation.masks.max() <= 1


def test_label_map_of_its_masks_is_its_arg_max(folder, words):
    annotator = MMSegAnnotator(folder, classes="all")
    annotator.bind(words)
    reds = torch.randint(0, 4, (1, 16, 16), generator=torch.Generator().manual_seed(0))
    annotation = annotator.annotate(sample([[1, 2, 3]], reds.byte()))
    ids = torch.tensor([[1, 2, 3]])
    assert to_label_map(annotation.masks, ids, annotation.found).equal(reds)


def test_small_or_doubtful_regions_are_not_found(folder, words):
    seen = words.seen[0]
    reds = torch.zeros(1, 10, 10, dtype=torch.uint8)
    reds[0, 0, :4] = seen
    for changes, found in (
        ({"min_area": 0.04}, True),
        ({"min_area": 0.05}, False),
        ({"min_score": 0.99}, False),
        ({"min_area": 0.0}, True),
    ):
        annotator = MMSegAnnotator(folder, **changes)
        annotator.bind(words)
        assert annotator.annotate(sample([[seen]], reds)).found.item() is found


def test_classes_that_cannot_be_there_do_not_compete(folder, words):
    """Every pixel is given to the likeliest class that was asked for, and compared with those."""
    unseen = list(words.unseen)
    image = sample([[*words.seen[:1], *unseen]], torch.full((1, 4, 4), words.seen[0]).byte())
    annotator = MMSegAnnotator(folder, classes="unseen", min_score=0.0)
    annotator.bind(words)
    assert not annotator.annotate(image).found.any()
    assert "others_compete" not in annotator.describe()
    annotator = MMSegAnnotator(folder, classes="unseen", min_score=0.0, others_compete=False)
    annotator.bind(words)
    assert annotator.describe()["others_compete"] is False
    annotation = annotator.annotate(image)
    probabilities = annotator.segmenter(image.images).softmax(dim=1)[0, unseen]
    own, *others = probabilities.flatten(1).T.sort(dim=1, descending=True).values[0].tolist()
    assert annotation.masks[0, 1:].max().item() == pytest.approx(own / (own + others[0]))
    assert annotation.found[0].tolist()[0] is False and annotation.found[0, 1:].any()


def test_describes_itself(folder, words):
    annotator = MMSegAnnotator(folder)
    annotator.bind(words)
    facts = annotator.describe()
    assert facts["requested_classes"] == list(words.seen)
    assert facts["trained_on"] == list(range(1, 21))
    assert json.dumps(facts) and len(facts["digest"]) == 16
    assert not annotator.training and not any(p.requires_grad for p in annotator.parameters())


def test_what_it_has_learnt_from_comes_from_the_folder(words, tmp_path):
    save_segmenter(Colours(words.num_classes), tmp_path / "own", words, words.seen)
    annotator = MMSegAnnotator(str(tmp_path / "own"), classes="all")
    annotator.bind(words)
    facts = annotator.describe()
    assert facts["requested_classes"] == list(range(1, 21))
    assert facts["trained_on"] == sorted(words.seen) and "practices" not in facts
    done = ["pseudo-labels of real images"]
    save_segmenter(Colours(words.num_classes), tmp_path / "own", words, words.seen, done)
    annotator = MMSegAnnotator(str(tmp_path / "own"), classes="all")
    annotator.bind(words)
    assert annotator.describe()["practices"] == done


@pytest.mark.parametrize("changed", [{"min_area": 0.3}, {"min_score": 0.9}, {"classes": "all"}])
def test_whatever_decides_its_masks_is_described(changed, folder, words):
    facts = []
    for options in ({}, changed):
        annotator = MMSegAnnotator(folder, **options)
        annotator.bind(words)
        facts.append(annotator.describe())
    assert facts[0] != facts[1]


def test_bad_folders_are_named(folder, words, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*config\.json"):
        MMSegAnnotator("nowhere")
    with pytest.raises(ValueError, match="min_area"):
        MMSegAnnotator(folder, min_area=1.5)
    with pytest.raises(ValueError, match="3 classes.*21"):
        save_segmenter(Colours(3), tmp_path / "x", words)
    annotator = MMSegAnnotator(folder)
    with pytest.raises(ValueError, match="bind"):
        annotator.annotate(sample([[1]], torch.zeros(1, 4, 4)))
    path = tmp_path / "annotator" / "config.json"
    config = json.loads(path.read_text())
    config["classes"] = ["zebra"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="none of the seen classes.*zebra"):
        MMSegAnnotator(folder).bind(words)
    config["segmenter"]["class_path"] = "collections.OrderedDict"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is no Segmenter"):
        MMSegAnnotator(folder)
