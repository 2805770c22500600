"""ovseg.data.unlabelled: images that nobody labelled."""

import numpy as np
import pytest
from PIL import Image

from ovseg.data.unlabelled import ImageFolder


def test_images_are_scaled_and_cut_at_the_middle(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = (10, 20, 30)  # the middle square
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.new("L", (8, 8), 77).save(tmp_path / "b.png")
    stream = ImageFolder(str(tmp_path), 8)
    batch = stream[[1, 0]]
    assert len(stream) == 2 and batch.images.shape == (2, 3, 8, 8)
    assert (batch.images[0] == 77).all() and (batch.labels == 255).all()
    assert batch.images[1].permute(1, 2, 0).numpy().tolist() == wide[:, 8:16].tolist()
    assert stream.taught_classes() == set()


def test_another_file_is_another_stream(tmp_path):
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / str(number) / "a.png")
    first, second = (ImageFolder(str(tmp_path / str(n)), 4).describe() for n in range(2))
    assert first["digest"] != second["digest"] and str(tmp_path) not in str(first)


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no photo"):
        ImageFolder(str(tmp_path), 8)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="size must be >= 1"):
        ImageFolder(str(tmp_path), 0)
    with pytest.raises(ValueError, match="a.png cannot be decoded"):
        ImageFolder(str(tmp_path), 8)[[0]]
