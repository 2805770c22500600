"""ovseg.photos and ``ovseg segment``: photographs as people have them."""

from __future__ import annotations

import json
import shutil
import warnings

import families
import numpy as np
import pytest
from PIL import Image

from ovseg import GroundedDiffusion
from ovseg.__main__ import main
from ovseg.backbones.taps import SD1_TAPS
from ovseg.backbones.unet import UNetBackbone
from ovseg.grounders.folder import save_grounder
from ovseg.grounders.fusion import FusionGrounder
from ovseg.photos import find_photos, load_photo
from ovseg.vocabulary import Vocabulary
from ovseg.windows import see, windows


@pytest.fixture(scope="module")
def model(tiny_grounder):
    return GroundedDiffusion.from_pretrained(tiny_grounder)


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (7, 40), (100, 3), (640, 480), (300, 301)])
def test_windows_are_squares_that_cover_and_overlap(size):
    width, height = size
    boxes = windows(width, height)
    covered = np.zeros((height, width), int)
    for left, top, right, bottom in boxes:
        assert right - left == bottom - top == min(size)
        assert left >= 0 and top >= 0 and right <= width and bottom <= height
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1
    starts = [max(box[:2]) for box in boxes]
    steps = np.diff(starts)
    assert (steps <= max(1, min(size) // 2)).all()


def test_any_picture_becomes_upright_rgb(tmp_path):
    pixels = noise(6, 4)
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(load_photo(tmp_path / "turned.png")), np.rot90(pixels, -1))
    grey = noise(6, 4, 1)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (np.asarray(load_photo(tmp_path / "grey.png")) == grey[..., None]).all()
    deep = (grey.astype(np.uint16) * 200) + 300  # of 16 bits, its range 255 * 200 at most
    Image.fromarray(deep).save(tmp_path / "deep.png")
    wanted = (deep - deep.min()) / (deep.max() - deep.min()) * 255
    assert abs(np.asarray(load_photo(tmp_path / "deep.png"))[..., 0] - wanted).max() <= 0.5
    clear = np.dstack([pixels, np.full((4, 6), 255, np.uint8)])
    clear[:, 3:, 3] = 0
    Image.fromarray(clear).save(tmp_path / "clear.png")
    got = np.asarray(load_photo(tmp_path / "clear.png"))
    assert (got[:, 3:] == 255).all() and np.array_equal(got[:, :3], pixels[:, :3])
    Image.fromarray(noise(6, 4, 4), mode="CMYK").save(tmp_path / "print.jpg")
    assert load_photo(tmp_path / "print.jpg").mode == "RGB"
    (tmp_path / "half.png").write_bytes((tmp_path / "turned.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no photo")
    for name in ("half.png", "text.jpg"):
        with pytest.raises(ValueError, match=f"{name} cannot be decoded"):
            load_photo(tmp_path / name)
    (tmp_path / "notes.txt").write_text("none")
    found = find_photos([tmp_path / "turned.png", tmp_path])
    assert [p.name for p in found[:3]] == ["turned.png", "clear.png", "deep.png"]
    assert len(found) == 7  # one was given twice
    (tmp_path / "folder.jpg").mkdir()
    assert len(find_photos([tmp_path])) == 7


def test_whatever_stops_a_decoder_is_one_line(tmp_path, monkeypatch):
    """Damaged files make Pillow raise errors of many kinds, and warn of odd metadata."""
    Image.fromarray(noise(6, 4)).save(tmp_path / "a.png")
    for error in (TypeError("a float\nis none"), EOFError(), MemoryError()):

        def stumble(file, error=error):
            warnings.warn("odd metadata", stacklevel=1)
            raise error

        monkeypatch.setattr("ovseg.photos.ImageOps.exif_transpose", stumble)
        with pytest.raises(ValueError, match=r"a.png cannot be decoded: \w+") as caught:
            load_photo(tmp_path / "a.png")
        assert "\n" not in str(caught.value)


def test_probabilities_have_the_photos_size_and_average_windows_and_samples(model):
    photo = Image.fromarray(noise(90, 40))
    names = ["house", "fish"]
    whole = list(see(model, photo, names))
    assert [m.shape for m in whole] == [(40, 90)] * 2
    one = model.ground(photo.resize((64, 64), Image.Resampling.BICUBIC), names)
    small = Image.fromarray(one.probabilities["fish"]).resize((90, 40), Image.Resampling.BILINEAR)
    assert np.allclose(whole[1], np.asarray(small), atol=1e-6)
    two = list(see(model, photo, names, seed=4, samples=2))
    each = [list(see(model, photo, names, seed=seed)) for seed in (4, 5)]
    assert np.allclose(two[0], (each[0][0] + each[1][0]) / 2, atol=1e-4)
    tiled = next(see(model, photo, names, tiled=True))
    crops = [photo.crop(box) for box in windows(90, 40)]
    parts = [next(see(model, crop, names)) for crop in crops]
    total, weight = np.zeros((40, 90)), np.zeros((40, 90))
    for (left, top, right, bottom), part in zip(windows(90, 40), parts, strict=True):
        total[top:bottom, left:right] += part
        weight[top:bottom, left:right] += 1
    # a crop is resized without what lies beyond it
    assert abs(tiled - total / weight).mean() < 0.01


def run(capsys, *argv) -> tuple[int, str, str]:
    code = main(["segment", "--device", "cpu", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def test_segment_writes_maps_pictures_and_records_and_goes_on(tiny_grounder, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    Image.fromarray(noise(90, 40)).save(photos / "a.jpg")
    Image.fromarray(noise(1, 1)).save(photos / "b.png")
    (photos / "c.jpg").write_text("no photo")
    arguments = [photos, "--names", "house, potted plant", "--model", tiny_grounder, "--out", out]
    code, text, error = run(capsys, *arguments)
    assert code == 2 and "2 of 3 photos" in text  # the others are done
    assert "c.jpg cannot be decoded" in error and "Traceback" not in error
    with Image.open(out / "a.labels.png") as labels:
        labels.load()
    assert labels.mode == "P" and labels.size == (90, 40)
    assert labels.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]  # VOC's first colours
    record = json.loads((out / "a.segments.json").read_text())
    ids = set(np.unique(np.asarray(labels)))
    present = {f["id"] for f in record["found"].values() if f["present"]}
    assert ids <= {0, *present} and (record["width"], record["height"]) == (90, 40)
    model = GroundedDiffusion.from_pretrained(tiny_grounder)
    house, plant = see(model, load_photo(photos / "a.jpg"), ["house", "potted plant"])
    wanted = np.where(np.maximum(house, plant) < 0.5, 0, np.where(plant >= house, 2, 1))
    assert (np.asarray(labels) == wanted).all()
    assert record["found"]["house"]["area"] == pytest.approx((house >= 0.5).mean(), abs=1e-6)
    assert load_photo(out / "a.overlay.png").size == (360, 160 + 40)  # four times, two names
    assert not list(out.glob("*.tmp"))
    before = (out / "a.segments.json").stat().st_mtime_ns
    run(capsys, *arguments)
    assert (out / "a.segments.json").stat().st_mtime_ns == before  # done already
    run(capsys, *arguments, "--seed", "1")
    assert (out / "a.segments.json").stat().st_mtime_ns != before
    for damaged in ("{", "[]"):
        (out / "a.segments.json").write_text(damaged)
        run(capsys, *arguments)
        assert json.loads((out / "a.segments.json").read_text()) == record


def test_what_is_done_is_the_same_photo_with_all_its_files(
    tiny_grounder, tmp_path, capsys, monkeypatch
):
    photo, out = tmp_path / "photos" / "a.png", tmp_path / "out"
    photo.parent.mkdir()
    Image.fromarray(noise(90, 40)).save(photo)
    arguments = [photo, "--names", "house", "--model", tiny_grounder, "--out", out]
    assert run(capsys, *arguments)[0] == 0
    record = (out / "a.segments.json").read_text()
    for part in ("labels", "overlay"):
        (out / f"a.{part}.png").unlink()
        assert run(capsys, *arguments)[0] == 0
        assert (out / f"a.{part}.png").is_file()
    assert (out / "a.segments.json").read_text() == record
    Image.fromarray(noise(50, 30)).save(photo)  # another one of the same name
    with monkeypatch.context() as patch:
        patch.setattr("ovseg.segment.write_text", lambda *_: 1 / 0)  # killed before the record
        with pytest.raises(ZeroDivisionError):
            main(["segment", "--device", "cpu", *map(str, arguments)])
    assert not (out / "a.segments.json").exists()  # that of the first beside pictures of the second
    assert run(capsys, *arguments)[0] == 0
    with Image.open(out / "a.labels.png") as labels:
        assert labels.size == (50, 30)
    again = json.loads((out / "a.segments.json").read_text())
    first = json.loads(record)
    assert again["width"] == 50 and again["settings"] != first["settings"]


def test_photographs_of_all_kinds_at_the_geometry_of_stable_diffusion_1(tmp_path, capsys):
    """25 taps of 64x64 latents; the largest picture has 48 million pixels."""
    backbone = UNetBackbone(families.save(families.sd1, tmp_path / "sd1"), list(SD1_TAPS), steps=2)
    sizes = {"widths": (2, 2, 2, 4), "layers": 1, "hidden": 16, "heads": 2, "ffn": 16}
    grounder = FusionGrounder(backbone.feature_spec, backbone.text_width, **sizes)
    save_grounder(grounder, tmp_path / "grounder", backbone, Vocabulary.load("clipart"))
    photos = tmp_path / "photos"
    photos.mkdir()
    picture = Image.fromarray(noise(90, 60))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(photos / "turned.jpg", exif=exif)
    for mode, name in (("RGB", "rgb.jpg"), ("L", "grey.jpg"), ("CMYK", "cmyk.jpg")):
        picture.convert(mode).save(photos / name)
    picture.convert("RGBA").save(photos / "alpha.png")
    Image.new("RGB", (1, 1), "red").save(photos / "one.png")
    picture.resize((8000, 6000)).save(photos / "large.jpg")
    arguments = ["--names", "house, fish", "--model", tmp_path / "grounder"]
    code, text, error = run(capsys, photos, *arguments, "--out", tmp_path / "out")
    assert code == 0 and "7 of 7 photos" in text, error
    for name, size in (("turned", (60, 90)), ("one", (1, 1)), ("large", (8000, 6000))):
        with Image.open(tmp_path / "out" / f"{name}.labels.png") as labels:
            assert labels.size == size
    windows_too = ["--tiled", "--samples", "2", "--out", tmp_path / "tiled"]
    assert run(capsys, photos / "turned.jpg", photos / "one.png", *arguments, *windows_too)[0] == 0


def test_a_name_that_is_not_there_is_said(tiny_grounder, tmp_path, capsys):
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.png")
    strict = tmp_path / "strict"
    shutil.copytree(tiny_grounder, strict)
    config = json.loads((strict / "config.json").read_text())
    (strict / "config.json").write_text(json.dumps(config | {"threshold": 0.9999}))
    arguments = ["--names", "house, fish", "--model", strict]
    code, text, _ = run(capsys, tmp_path / "a.png", *arguments, "--out", tmp_path / "out")
    assert code == 0 and f"{tmp_path / 'a.png'}: no house, no fish" in text
    record = json.loads((tmp_path / "out" / "a.segments.json").read_text())
    assert record["found"]["house"]["present"] is False
    assert not np.asarray(load_photo(tmp_path / "out" / "a.labels.png")).any()


def test_a_model_on_the_hub(tiny_grounder, hub, tmp_path, capsys):
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.png")
    shutil.copytree(tiny_grounder, hub.remote / "owner" / "name")
    arguments = [tmp_path / "a.png", "--names", "house", "--out", tmp_path / "out", "--model"]
    assert run(capsys, *arguments, "owner/name")[0] == 0 and len(hub.asked) == 1
    code, _, error = run(capsys, *arguments, "owner/none")
    assert code == 2 and error.count("\n") == 1
    assert error.startswith("ovseg segment: cannot find config.json and model.safetensors of")


def test_refusals(tiny_grounder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    Image.fromarray(noise(8, 8)).save(tmp_path / "two" / "a.png")
    good = ["--names", "house", "--model", tiny_grounder, "--out", tmp_path / "out"]
    photo = tmp_path / "a.png"
    for arguments, line in (
        ([tmp_path / "none.jpg", *good], "no file"),
        ([tmp_path / "empty", *good], "no photo"),
        ([photo, tmp_path / "two", *good], "would both be written as a"),
        ([photo, *good, "--names", "house, house"], "1 to 255 different names"),
        ([photo, *good, "--names", " , "], "1 to 255 different names"),
        ([photo, *good, "--samples", "0"], "--samples must be >= 1"),
        ([photo, *good, "--seed", "-1"], "--seed must be >= 0"),
        ([photo, *good, "--seed", str(2**63)], "--seed must be >= 0"),
        ([photo, *good, "--device", "gpu"], "nothing can be computed on the device 'gpu'"),
        ([photo, *good, "--names", "x" * 900], "xx ...' is cut off"),
        ([photo, *good, "--inversion-steps", "-1"], "--inversion-steps >= 0"),
        ([photo, *good, "--inversion-steps", "2", "--samples", "2"], "averages draws of the noise"),
        ([photo, *good, "--out", tmp_path], "is a folder of the photos"),
        ([photo, *good, "--model", tmp_path / "empty"], "no grounder in"),
        ([photo, *good, "--prompt", "a tree " * 40 + "and a house"], "house"),
    ):
        code, _, error = run(capsys, *arguments)
        assert code == 2 and line in error, (arguments, error)
        assert error.count("ovseg segment:") == 1 and "Traceback" not in error, error
