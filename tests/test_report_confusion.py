import io

import numpy as np
from PIL import Image

from ovseg.report.confusion import as_csv, draw, shares, shown_classes
from ovseg.vocabulary import Vocabulary

VOC = Vocabulary.load("voc", "zs3")
STUFF = Vocabulary.load("coco_stuff", "zs3")


def test_shares_of_rows():
    found = shares(np.array([[3, 1], [0, 0]]))
    assert found[0].tolist() == [75, 25] and np.isnan(found[1]).all()


def test_seen_classes_stand_before_unseen_ones_and_background_where_it_occurs():
    matrix = np.eye(21, dtype=int)
    assert shown_classes(matrix, VOC) == [0, *VOC.seen, *VOC.unseen]
    matrix[0] = 0
    assert shown_classes(matrix, VOC) == [*VOC.seen, *VOC.unseen]
    matrix[5, 0] = 1  # predicted
    assert shown_classes(matrix, VOC)[0] == 0


def test_of_many_classes_the_largest_confusions_are_shown():
    matrix = 100 * np.eye(172, dtype=int)
    matrix[0] = 0
    cow = STUFF.id_of("cow")
    matrix[7, cow], matrix[3, 2], matrix[9, 7], matrix[50, 60] = 90, 80, 70, 5
    matrix[170] *= 0  # does not occur
    assert shown_classes(matrix, STUFF, most=5) == [2, 3, 7, 9, cow]


def test_the_picture_is_one_and_always_the_same():
    random = np.random.default_rng(0)
    for words in (VOC, STUFF):
        matrix = random.integers(0, 50, (words.num_classes, words.num_classes))
        matrix[4] = 0
        content = draw(matrix, words, "val")
        assert content == draw(matrix, words, "val")
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.format == "PNG" and min(picture.size) > 600


def test_the_table_quotes_names():
    text = as_csv(np.array([[1, 2], [3, 4]]), ["a", "b, c"])
    assert text == 'truth,a,"b, c"\na,1,2\n"b, c",3,4\n'
