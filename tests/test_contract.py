"""`ovseg check`: a third party's backbone, kept and broken."""

from __future__ import annotations

import pytest
import yaml
from acme.backbone import ToyBackbone

from ovseg.__main__ import main
from ovseg.backbones.unet import UNetBackbone
from ovseg.contract import CHECKS, check


class Seedless(ToyBackbone):
    """Breaks two promises: it forgets the seed, and tells a wrong stride."""

    @property
    def feature_spec(self):
        spec = super().feature_spec
        fine = spec.taps["fine"]._replace(stride=8)
        return type(spec)({**spec.taps, "fine": fine}, 1, 1)

    def sample(self, requests):
        return super().sample([request._replace(seed=0) for request in requests])


def test_a_third_partys_backbone_and_a_diffusion_model_keep_it(tiny_pipeline):
    real = UNetBackbone(tiny_pipeline, ["conv_in", "mid_block"], steps=2, probes=("mid_block",))
    for backbone in (ToyBackbone(), real):
        results = check(backbone)
        assert len(results) == len(CHECKS) and not any(results.values()), results


class Faulty(ToyBackbone):
    """Breaks every promise by an error of its own."""

    def sample(self, requests):
        sample = super().sample(requests)
        sample.timesteps = sample.timesteps.repeat(2)
        return sample

    def features(self, latents, timesteps, requests):
        found = super().features(latents, timesteps, requests)
        return found if len(timesteps) == 1 else type(found)({"coarse": found.maps["coarse"]})

    def encode_image(self, images, requests):
        if len(requests) == 2 and hasattr(self, "asked"):
            raise NotImplementedError("no\nphotographs")
        self.asked = True
        return super().encode_image(images, requests)

    def describe(self):
        raise KeyError


def test_what_is_raised_is_a_line_too(capsys):
    broken = [why for why in check(Faulty()).values() if why]
    assert broken == [
        "the sample's timesteps are not those of `timesteps`",
        "'fine' differs by inf of its standard deviation",
        "NotImplementedError: no photographs",
        "KeyError",
    ]
    assert main(["check", "--backbone", f"{__name__}.Faulty"]) == 2
    assert "BROKEN: KeyError" in capsys.readouterr().out


def test_what_is_broken_is_said():
    broken = {line: why for line, why in check(Seedless()).items() if why}
    assert sorted(broken.values()) == [
        "'fine' is said to have stride 8, its map is (8, 8) of an image of 32 pixels",
        "two seeds give the same image",
    ]


def test_the_verb(tiny_pipeline, tmp_path, capsys):
    facts = {"model": tiny_pipeline, "taps": ["mid_block"], "steps": 2}
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump({"class_path": "ovseg.backbones.unet.UNetBackbone", "init_args": facts})
    )
    assert main(["check", "--backbone", str(path)]) == 0
    assert capsys.readouterr().out.count("kept") == len(CHECKS)
    facts["taps"] = ["nowhere"]
    path.write_text(
        yaml.safe_dump({"class_path": "ovseg.backbones.unet.UNetBackbone", "init_args": facts})
    )
    assert main(["check", "--backbone", str(path)]) == 2
    assert "no block 'nowhere' to tap" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "arguments are required: backbone"),
        (["--backbone", "missing.yaml"], "no file missing.yaml"),
        (["--backbone", "nopackage.Model"], "nopackage"),
    ],
)
def test_bad_arguments_are_one_line(arguments, words, capsys):
    assert main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("ovseg check: ") and error.count("\n") == 1
