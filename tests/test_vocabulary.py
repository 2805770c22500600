"""Vocabularies: the shipped ones, their splits, and the errors a user can cause."""

import pytest
import yaml

from ovseg.errors import importing_mmseg
from ovseg.vocabulary import Vocabulary

VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()

# Unseen ids. 1-3: the paper's three splits; zs3: the last five classes, as SPNet has it; zs3net: as
# the comments of ZS3Net's eval_pascal.py have them.
VOC_UNSEEN = {
    "1": (7, 12, 18, 19, 20),
    "2": (13, 14, 15, 16, 17),
    "3": (6, 8, 9, 10, 11),
    "zs3": (16, 17, 18, 19, 20),
    "zs3net_2": (10, 14),
    "zs3net_4": (1, 10, 14, 18),
    "zs3net_6": (1, 8, 10, 14, 18, 20),
    "zs3net_8": (1, 5, 8, 10, 14, 18, 19, 20),
    "zs3net_10": (1, 5, 8, 9, 10, 14, 16, 18, 19, 20),
}


def voc_color(label: int) -> tuple[int, int, int]:
    """PASCAL VOC's own rule: bit 3i + c of the id is bit 7 - i of channel c."""
    return tuple(
        sum(((label >> (3 * i + channel)) & 1) << (7 - i) for i in range(8)) for channel in range(3)
    )


def write(folder, data) -> str:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(data))
    return str(path)


def own(**changes) -> dict:
    classes = [{"key": "cat", "color": [1, 2, 3]}, {"key": "bus", "color": [4, 5, 6]}]
    return {"name": "own", "classes": classes, "splits": {"a": ["bus"]}, **changes}


def test_voc_has_the_data_set_s_ids_keys_and_palette():
    voc = Vocabulary.load("voc")
    assert [c.key for c in voc.classes] == VOC
    assert [c.id for c in voc.classes] == list(range(1, 21))
    assert voc.num_classes == 21
    assert [tuple(color) for color in voc.palette] == [voc_color(label) for label in range(21)]


def test_voc_has_names_for_prompts():
    voc = Vocabulary.load("voc")
    assert (voc[11].name, voc[16].name, voc[20].name) == ("dining table", "potted plant", "tv")
    assert (voc[1].article, voc[20].article, voc[15].plural) == ("an", "a", "people")
    assert voc.names[0] == "background"
    assert voc.names[14] == "motorbike"
    assert not [name for name in voc.names if name in ("diningtable", "pottedplant", "tvmonitor")]


@pytest.mark.parametrize("split", VOC_UNSEEN)
def test_voc_splits(split):
    voc = Vocabulary.load("voc", split)
    assert voc.unseen == VOC_UNSEEN[split]
    assert voc.seen == tuple(i for i in range(1, 21) if i not in VOC_UNSEEN[split])
    assert voc.select("unseen") == voc.unseen
    assert voc.select("all") == tuple(range(1, 21))


@pytest.mark.parametrize("word", ["pottedplant", "potted plant", "Houseplant", "potted plants"])
def test_every_word_of_a_class_leads_to_its_id(word):
    assert Vocabulary.load("voc").id_of(word) == 16


SHIPPED = [("clipart", 1), ("voc", 1), ("coco", "65_15"), ("coco_stuff", "zs3")]
SHIPPED += [("pascal_context", "zs3net_10")]


@pytest.mark.parametrize(("name", "split"), SHIPPED)
def test_no_word_means_two_classes(name, split):
    vocabulary = Vocabulary.load(name, split)
    words = [{c.key, c.name, c.plural, *c.synonyms} for c in vocabulary.classes]
    assert sum(map(len, words)) == len(set().union(*words))
    assert len(set(vocabulary.palette)) == vocabulary.num_classes
    for c in vocabulary.classes:
        assert c.article in ("some", "an" if c.name[0] in "aeiou" else "a")
        assert c.article != "some" or c.plural == c.name


def test_coco_stuff_has_the_classes_of_mmsegmentation():
    """Its order leaves out the 11 numbers of the data set that no image has."""
    with importing_mmseg():
        from mmseg.datasets import COCOStuffDataset

    coco = Vocabulary.load("coco_stuff", "zs3")
    assert tuple(c.key for c in coco.classes) == COCOStuffDataset.METAINFO["classes"]
    assert [tuple(color) for color in coco.palette] == [voc_color(label) for label in range(172)]
    assert (len(coco.seen), len(coco.unseen)) == (156, 15)
    unseen = "cow suitcase giraffe frisbee skateboard carrot scissors".split()
    stuff = "cardboard clouds grass playingfield river road tree wall-concrete".split()
    assert {coco[i].key for i in coco.unseen} == {*unseen, *stuff}


def test_pascal_context_has_the_classes_of_mmsegmentation_and_zs3net_s_splits():
    with importing_mmseg():
        from mmseg.datasets import PascalContextDataset59

    order = "cow motorbike sofa cat boat fence bird tvmonitor keyboard aeroplane".split()
    for number in (2, 4, 6, 8, 10):
        context = Vocabulary.load("pascal_context", f"zs3net_{number}")
        assert {context[i].key for i in context.unseen} == set(order[:number])
    assert tuple(c.key for c in context.classes) == PascalContextDataset59.METAINFO["classes"]
    assert [tuple(color) for color in context.palette] == [voc_color(label) for label in range(60)]
    for voc in Vocabulary.load("voc").classes:
        if voc.key != "diningtable":
            assert context[context.id_of(voc.key)].name == voc.name


def test_coco_is_the_things_of_coco_stuff():
    coco, whole = Vocabulary.load("coco", "65_15"), Vocabulary.load("coco_stuff", "zs3")
    assert coco.classes == whole.classes[:80]
    assert coco.classes[-1].key == "toothbrush"
    assert (len(coco.seen), len(coco.unseen)) == (65, 15)
    unseen = "airplane bear cat fork frisbee mouse sandwich snowboard suitcase toaster toilet train"
    two = {"parking meter", "hot dog", "hair drier"}
    assert {coco[i].key for i in coco.unseen} == {*unseen.split(), *two}


def test_coco_stuff_has_names_for_prompts():
    coco = Vocabulary.load("coco_stuff", "zs3")
    names = {"wall-brick": "brick wall", "sky-other": "sky", "playingfield": "playing field"}
    for key, name in names.items():
        assert coco[coco.id_of(key)].name == name
    assert not [name for name in coco.names if "-" in name or name.endswith("other")]
    assert coco[coco.id_of("grass")].article == "some"
    for other, own in (("tvmonitor", "tv"), ("aeroplane", "airplane"), ("sofa", "couch")):
        assert coco[coco.id_of(other)].name == own


@pytest.mark.parametrize("split", ["1", "2", "3"])
def test_clipart_splits_are_15_and_5(split):
    clipart = Vocabulary.load("clipart", split)
    assert (len(clipart.seen), len(clipart.unseen)) == (15, 5)


def test_no_class_is_unseen_in_two_clipart_splits():
    unseen = [i for split in "123" for i in Vocabulary.load("clipart", split).unseen]
    assert len(set(unseen)) == 15


def test_a_user_s_file_is_loaded_by_path(tmp_path):
    vocabulary = Vocabulary.load(write(tmp_path, own()), "a")
    assert vocabulary.names == ("background", "cat", "bus")
    assert (vocabulary[1].article, vocabulary[1].plural) == ("a", "cats")
    assert (vocabulary.seen, vocabulary.unseen) == ((1,), (2,))


def test_digest_depends_on_what_label_maps_mean(tmp_path):
    first = Vocabulary.load(write(tmp_path, own()), "a").digest
    recoloured = own()
    recoloured["classes"][0]["color"] = [9, 9, 9]
    assert Vocabulary.load(write(tmp_path, recoloured), "a").digest == first
    swapped = own(classes=own()["classes"][::-1])
    assert Vocabulary.load(write(tmp_path, swapped), "a").digest != first


@pytest.mark.parametrize(
    "changes", [{"article": "some"}, {"plural": "kitties"}, {"synonyms": ["kitty"]}]
)
def test_digest_of_the_words_depends_on_what_prompts_are_made_of(tmp_path, changes):
    first = Vocabulary.load(write(tmp_path, own()), "a")
    reworded, recoloured = own(), own()
    reworded["classes"][0] |= changes
    recoloured["classes"][0]["color"] = [9, 9, 9]
    other = Vocabulary.load(write(tmp_path, reworded), "a")
    assert other.words_digest != first.words_digest and other.digest == first.digest
    same = Vocabulary.load(write(tmp_path, recoloured), "a")
    assert same.words_digest == first.words_digest


def test_unknown_class_names_the_nearest():
    with pytest.raises(ValueError, match="unknown class 'motobike'.*nearest: motorbike"):
        Vocabulary.load("voc").id_of("motobike")
    with pytest.raises(ValueError, match="it has aeroplane, bicycle"):
        Vocabulary.load("voc").id_of("0123456789")


def test_unknown_split_vocabulary_id_and_group():
    with pytest.raises(ValueError, match="no split '7'; choose one of 1, 2, 3, zs3"):
        Vocabulary.load("voc", "7")
    with pytest.raises(
        ValueError, match="give one of clipart, coco, coco_stuff, pascal_context, voc or"
    ):
        Vocabulary.load("vok")
    with pytest.raises(ValueError, match="class id 21 is outside 1..20"):
        Vocabulary.load("voc")[21]
    with pytest.raises(ValueError, match="one of seen, unseen, all, got 'some'"):
        Vocabulary.load("voc").select("some")


@pytest.mark.parametrize(
    "broken", [{"classes": [{"key": "cat"}]}, {"splits": None}, {"classes": 3}]
)
def test_a_file_that_is_no_vocabulary(tmp_path, broken):
    with pytest.raises(ValueError, match="needs name, classes .* and splits"):
        Vocabulary.load(write(tmp_path, own(**broken)), "a")
    with pytest.raises(ValueError, match="unknown class 'dog'"):
        Vocabulary.load(write(tmp_path, own(splits={"a": ["dog"]})), "a")


def test_a_key_or_name_goes_before_another_class_s_other_words(tmp_path):
    """Whichever of the two classes comes first."""
    table = {"key": "table", "color": [1, 1, 1]}
    dining = {"key": "diningtable", "synonyms": ["table"], "plural": "table", "color": [2, 2, 2]}
    for classes in ([table, dining], [dining, table]):
        path = write(tmp_path, own(classes=classes, splits={"a": ["table", "Table"]}))
        vocabulary = Vocabulary.load(path, "a")
        (unseen,) = vocabulary.unseen
        assert vocabulary[unseen].key == "table" and vocabulary.matched(["table"]) == [unseen]


COLOR = "color must be three whole numbers in 0..255"
NOT_BACKGROUND = "must be text, other than background"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"key": 7}, r"class 2 \(7\): key must be text without / and \\, .*, got 7"),
        ({"key": "../../x"}, r"class 2 \('../../x'\): key must be text without /"),
        ({"key": "c\\d"}, "key must be text without /"),
        ({"key": "Background"}, "key must be .* other than background"),
        ({"name": "background"}, f"name {NOT_BACKGROUND}"),
        ({"name": " "}, f"name {NOT_BACKGROUND}, got ' '"),
        ({"name": None}, f"name {NOT_BACKGROUND}, got None"),
        ({"article": None}, "article must be text, got None"),
        ({"plural": 3}, r"class 2 \('bus'\): plural must be text, got 3"),
        ({"synonyms": "coach"}, "synonyms must be a list of texts, got 'coach'"),
        ({"synonyms": [True]}, r"synonyms must be a list of texts, got \[True\]"),
        ({"synonyms": None}, "synonyms must be a list of texts, got None"),
        ({"color": [300, 0, 0]}, rf"{COLOR}, got \[300, 0, 0\]"),
        ({"color": [-1, 0, 0]}, COLOR),
        ({"color": [1, 2]}, COLOR),
        ({"color": [1, 2, 0.5]}, COLOR),
        ({"color": [True, 2, 3]}, COLOR),
        ({"color": "#ff0000"}, COLOR),
        ({"key": "cat"}, r"class 2 \('cat'\): key and name .* no other class, 'cat' is class 1's"),
        ({"name": "Cat"}, r"class 2 \('bus'\): key and name .* no other class, 'Cat' is class 1's"),
    ],
)
def test_what_a_class_cannot_be_is_one_line(tmp_path, changes, line):
    data = own(splits={"a": []})
    data["classes"][1] |= changes
    path = write(tmp_path, data)
    with pytest.raises(ValueError, match=f"^vocabulary '{path}', .*{line}") as raised:
        Vocabulary.load(path, "a")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": ["own"]}, r": name must be text, got \['own'\]"),
        ({"splits": {"a": "bus"}}, ": splits must be lists of unseen classes by the split's name"),
        ({"classes": [], "splits": {"a": []}}, " must have 1 to 254 classes, got 0"),
        ({"classes": 255}, " must have 1 to 254 classes, got 255"),
    ],
)
def test_what_a_vocabulary_cannot_be_is_one_line(tmp_path, changes, line):
    if isinstance(count := changes.get("classes"), int):
        changes = {"classes": [{"key": f"c{n}", "color": [0, 0, 0]} for n in range(count)]}
        changes["splits"] = {"a": ["c254"]}
    path = write(tmp_path, own(**changes))
    with pytest.raises(ValueError, match=f"^vocabulary '{path}'{line}"):
        Vocabulary.load(path, "a")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"name: own\nclasses: [a, b\n", "line 3: expected ',' or ']', but got '<stream end>'"),
        (b"name: own\n\tclasses: []\n", "line 2: found character .* that cannot start any token"),
        (b"name: !!python/object:os.system {}\n", "line 1: could not determine a constructor for"),
        (b"name: \x01\n", "unacceptable character #x0001"),
        (b"name: \xff\n", "'utf-8' codec can't decode byte"),
    ],
)
def test_a_file_that_is_no_yaml_is_one_line(tmp_path, text, why):
    path = tmp_path / "own.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"^vocabulary '{path}' is no YAML: {why}") as raised:
        Vocabulary.load(path)
    assert "\n" not in str(raised.value)


def test_labels_of_a_model():
    voc = Vocabulary.load("voc", "1")
    labels = ["Potted_Plant", "television receiver, TV", "couch;settee", "tree", "people"]
    assert voc.matched(labels) == [16, 20, 18, 0, 15]
    assert voc.matched(["fish", "bicycle"]) == [0, 2]
