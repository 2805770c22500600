"""benchmarks/: what they compare is the same work, and they run."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import yaml
from rich.console import Console

from ovseg.annotators.mmseg import MMSegAnnotator
from ovseg.backbones.configured import ConfiguredBackbone
from ovseg.backbones.taps import SD1_TAPS
from ovseg.data.shards import ShardStream
from ovseg.grounders.fusion import FusionGrounder
from ovseg.grounders.probe import ProbeGrounder
from ovseg.modules.grounding import GroundingModule
from ovseg.quickstart import write_configs
from ovseg.report.numbers import COLUMNS, METHODS, SCORES
from ovseg.steps import write_text
from ovseg.structures import Annotation, FeatureSpec
from ovseg.vocabulary import Vocabulary

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_medians_and_ratios(benchmark):
    common = benchmark("common")
    assert common.spread([3.0, 1.0, 2.00004]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert common.ratios([2.0, 9.0, 8.0], [1.0, 3.0, 2.0])["median"] == 3.0
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = common.interleave(cases, 2)
    assert calls == list("ababab") and [len(s) for s in seconds.values()] == [2, 2]


def test_the_literal_form_is_the_same_function(benchmark):
    literal_fusion, fusion_head = benchmark("literal_fusion"), benchmark("fusion_head")
    rows = [(8, stride) for _, stride in fusion_head.TABLE]
    spec = FeatureSpec(dict(zip(SD1_TAPS, rows, strict=True)), branches=2)
    features, entities, target = fusion_head.inputs(spec, 2, 2, 128, "cpu")
    features.maps = {tap: values.double() for tap, values in features.maps.items()}
    entities.text, target = entities.text.double(), target.double()
    torch.manual_seed(0)
    ours = FusionGrounder(spec, 768).double()
    literal = literal_fusion.LiteralFusion(spec).double()
    literal_fusion.copy_weights(ours, literal)
    counts = [sum(p.numel() for p in head.parameters()) for head in (ours, literal)]
    assert counts[0] == counts[1]
    torch.testing.assert_close(
        ours(features, entities), literal(features, entities), atol=1e-8, rtol=1e-6
    )
    for head in (ours, literal):
        fusion_head.step(head, features, entities, target)
    torch.testing.assert_close(
        ours.projections[0].weight.grad, literal.low_conv.weight.grad, atol=1e-8, rtol=1e-6
    )


def test_the_papers_table(benchmark):
    table = benchmark("fusion_head").TABLE
    assert [sum(c for c, s in table if s == stride) for stride in (64, 32, 16, 8)] == [
        *(7680, 7040, 4160, 2560)
    ]


def test_sampling_runs(benchmark, tiny_pipeline, tmp_path):
    out = tmp_path / "results" / "sampling.json"
    arguments = ["--model", tiny_pipeline, "--repeats", "1", "--steps", "3", "--image-steps", "2"]
    benchmark("sampling").main([*arguments, "--batch", "2", "--device", "cpu", "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["training_step"]["times_faster"]["median"] > 0
    assert set(result["images"]["per_second"]) == {"batch 1", "batch 2"}
    assert result["machine"]["threads"] >= 1


def test_live_training_runs(benchmark, tmp_path):
    out = tmp_path / "live.json"
    short = ["--repeats", "1", "--measured", "1", "--batch", "2", "--steps", "2", "--device", "cpu"]
    benchmark("live").main([*short, "--out", str(out)])
    result = json.loads(out.read_text())
    assert set(result["seconds_per_step"]) == {"ahead", "when due"}
    assert result["times_faster"]["median"] > 0


def test_ablations_change_arguments_that_exist(benchmark, tmp_path):
    ablations, settings = benchmark("ablations"), {"split": "1", "seed": 0, "scale": 1.0}
    for name in ("probe", "fusion"):
        steps = ablations.plan(ablations.Run(tmp_path, name, settings))
        assert len({step.name for step in steps}) == len(steps)
        trained = [step for step in steps if step.stage == name]
        assert trained[0].name == f"{name}/default" and len(trained) > 10
        for step in trained:
            overlay = yaml.safe_load(step.configs[-1].read_text(encoding="utf-8"))
            module = overlay["model"]["init_args"]
            assert module["output"] == str(tmp_path / step.name / "grounder")
            assert module.keys() <= inspect.signature(GroundingModule).parameters.keys()
            head = module.get("grounder", {}).get("init_args", {})
            assert head.keys() <= inspect.signature(ProbeGrounder).parameters.keys()
            data = overlay.get("data", {}).get("init_args", {})
            stream = data.get("train", {}).get("init_args", {})
            assert stream.keys() <= inspect.signature(ShardStream).parameters.keys()
            read = data.get("backbone", {}).get("init_args", {})
            assert read.keys() <= inspect.signature(ConfiguredBackbone).parameters.keys()


def test_ablations_make_their_own_shards(benchmark, tmp_path):
    ablations, settings = benchmark("ablations"), {"split": "2", "seed": 0, "scale": 1.0}
    steps = ablations.plan(ablations.Run(tmp_path, "probe", settings))
    made = {step.name: yaml.safe_load(step.configs[0].read_text()) for step in steps[:6]}
    assert list(made) == [f"data/{name}" for name in benchmark("ablation_variants").DATA]
    streams = {name: stage["data"]["init_args"]["predict"] for name, stage in made.items()}
    assert len(streams["data/annotated"]) == 7
    for name, predict in streams.items():
        assert made[name]["data"]["init_args"]["split"] == "2"
        assert predict["train"]["init_args"]["size"] == 1024
        writer = made[name]["trainer"]["callbacks"][0]["init_args"]
        assert writer["output"] == str(tmp_path / name / "{name}")
    cut = streams["data/largest_piece"]["train"]["init_args"]["annotator"]
    assert cut["class_path"] == "ablation_annotator.LargestPiece"
    prompts = streams["data/five_classes"]["train"]["init_args"]["prompts"]["init_args"]
    assert len(prompts["classes"]) == 5 and prompts["objects"] == {1: 1, 2: 2}
    words = Vocabulary.load("clipart", "1")
    assert {words.id_of(name) for name in prompts["classes"]} <= set(words.seen)
    (own,) = (yaml.safe_load(s.configs[0].read_text()) for s in steps[6:] if s.stage == "data")
    stream = own["data"]["init_args"]["predict"]["train"]["init_args"]
    folder = stream["annotator"]["init_args"]["folder"]
    assert stream["size"] == 1024 and folder == str(tmp_path / "probe" / "default" / "grounder")
    second = yaml.safe_load((tmp_path / "configs" / "2_grounding.yaml").read_text())
    test = second["data"]["init_args"]["test"]["two_unseen"]["init_args"]["path"]
    assert test == str(tmp_path / "data" / "annotated" / "two_unseen")


def test_the_largest_piece_of_a_mask(benchmark):
    masks = torch.zeros(1, 2, 6, 8)
    masks[0, 0, :2, :2], masks[0, 0, 4:, 3:] = 0.9, 0.8  # 4 and 10 pixels
    masks[0, 0, 3, 0] = 0.3  # not in any piece
    masks[0, 1, 1:3, 1:3] = 0.7
    annotator = benchmark("ablation_annotator").LargestPiece("clipart", classes="seen")
    whole = Annotation(masks.clone(), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    with patch.object(MMSegAnnotator, "annotate", return_value=whole):
        cut = annotator.annotate(None).masks
    masks[0, 0, :2, :2] = 0
    assert torch.equal(cut, masks)


def test_ablations_table_and_plot(benchmark, tmp_path, capsys):
    ablations = benchmark("ablations")
    for number, name in enumerate(["default", "dice", "step_2"]):
        results = {column: {"miou": 50.0 + number, "presence": 90.0} for column in COLUMNS}
        folder = tmp_path / "probe" / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results))
    table = ablations.collect(tmp_path)
    assert table["probe"]["dice"]["two_unseen"] == 51.0
    assert table["probe"]["step_2"]["presence"] == 90.0
    ablations.show(table, Console(width=200))
    printed = capsys.readouterr().out
    assert "with Dice loss" in printed and "90.5 at 1" in printed
    ablations.plot(table, tmp_path / "ablations.png")
    assert (tmp_path / "ablations.png").stat().st_size > 10_000


def fake_report(unseen: float) -> dict:
    """A quickstart's report in which only what is asked for differs."""
    kinds = [*COLUMNS.values()]
    grounding = {}
    for method in METHODS:
        grounding[method] = {group: {} for group, _ in kinds}
        for group, key in kinds:
            value = {"foreground": 50.0, "attention": 30.0, "random_names": 20.0, "swapped": 1.0}
            grounding[method][group][key] = value.get(method, unseen if key == "unseen" else 90.0)
    segmentation = {name: dict.fromkeys(SCORES, 70.0) for name in ("synthetic", "supervised")}
    return {
        "grounding": grounding,
        "choice": {"probe": {"two_seen": 100.0, "two_unseen": 99.0}},
        "presence": {"probe": dict.fromkeys(COLUMNS, 97.0)},
        "labels_of_stage_3": {"seen": 90.0, "unseen": 80.0},
        "segmentation": segmentation,
    }


def test_mean_and_spread_over_runs(benchmark, tmp_path, capsys):
    seeds, settings = benchmark("splits_and_seeds"), {"split": "1", "seed": 0, "scale": 1.0}
    for name, unseen in (("split-1_seed-0", 80.0), ("split-2_seed-0", 86.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(fake_report(unseen)))
        (tmp_path / name / "quickstart.json").write_text(json.dumps(settings))
    assert not seeds.collect(tmp_path, 0.01)
    result = seeds.summary(seeds.collect(tmp_path))
    assert result["numbers"]["probe two_unseen"] == {
        **{"mean": 83.0, "min": 80.0, "max": 86.0, "runs": 2},
        "std": pytest.approx(18**0.5),
    }
    verdicts = {row["what"]: (row["value"], row["held"]) for row in result["targets"]}
    assert verdicts["two objects: unseen / seen"] == (pytest.approx(83 / 90), True)
    assert verdicts["one object: unseen / seen"] == (pytest.approx(83 / 90), False)
    assert verdicts["two unseen above foreground"] == (pytest.approx(33), True)
    assert verdicts["two unseen: own - swapped"] == (pytest.approx(82), True)
    assert verdicts["random names above foreground, two unseen"] == (pytest.approx(-30), True)
    assert verdicts["labels of stage 3: unseen / seen"] == (pytest.approx(8 / 9), False)
    seeds.show(result, Console(width=110))
    assert capsys.readouterr().out.count("MISSED") == 2


def test_runs_of_another_scale_are_not_taken_as_done(benchmark, tmp_path, monkeypatch, capfd):
    seeds, folder = benchmark("splits_and_seeds"), tmp_path / "split-1_seed-0"
    write_text(folder / "report.json", json.dumps(fake_report(80.0)))
    write_text(folder / "quickstart.json", json.dumps({"split": "1", "seed": 0, "scale": 0.01}))
    monkeypatch.setattr(seeds, "SPLITS", ("1",))
    monkeypatch.setattr(seeds, "SEEDS", (0,))
    monkeypatch.setattr("sys.argv", ["splits_and_seeds.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        seeds.main()
    assert ended.value.code == 2
    assert "holds a run with" in capfd.readouterr().err
    assert not (tmp_path / "splits_and_seeds.json").exists()


def test_dataset_sizes(benchmark, tmp_path, capsys):
    sizes = benchmark("dataset_size")
    write_configs(tmp_path / "run", {"split": "1", "seed": 0, "scale": 1.0})
    steps = sizes.plan(tmp_path / "run", tmp_path / "out", (250, 2000))
    assert [step.name for step in steps] == ["synthetic", "images_250", "images_2000"]
    made, _, last = (yaml.safe_load(step.configs[0].read_text()) for step in steps)
    assert made["data"]["init_args"]["predict"]["synthetic"]["init_args"]["size"] == 2300
    stream = last["data"]["init_args"]["train"]["init_args"]
    assert stream == {"path": str(tmp_path / "out" / "synthetic"), "limit": 2000}
    assert str(tmp_path / "run") not in json.dumps([last["trainer"], last["data"]])
    assert [step.after for step in steps] == ["", "synthetic", "synthetic"]
    for size, value in ((2000, 70.0), (250, 60.0), (500, 10.0)):
        (tmp_path / f"images_{size}").mkdir()
        scores = {"drawn": dict.fromkeys(SCORES, value)}
        (tmp_path / f"images_{size}" / "results.json").write_text(json.dumps(scores))
    table = sizes.collect(tmp_path, (2000, 250))
    assert list(table) == [250, 2000] and table[250]["harmonic"] == 60.0
    sizes.show(table, dict.fromkeys(SCORES, 81.5), Console(width=100))
    assert "81.5" in capsys.readouterr().out
    sizes.plot(table, dict.fromkeys(SCORES, 81.5), tmp_path / "sizes.png")
    assert (tmp_path / "sizes.png").stat().st_size > 10_000


def test_samplers_run(benchmark, tmp_path, monkeypatch, capsys):
    samplers = benchmark("samplers")
    monkeypatch.setattr(samplers, "CASES", [("UniPCMultistepScheduler", 3.5, 2)])
    samplers.main(["--images", "2", "--out", str(tmp_path / "out.json")])
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row["steps"] == 2 and row["both"] in (0, 50, 100)
    assert "UniPCMultistepScheduler, guidance 3.5, 2 steps: " in capsys.readouterr().out


def test_where_time_goes_by_hand(benchmark):
    cli = "process 1;LightningCLI._run_subcommand (lightning/pytorch/cli.py:9)"
    profile = [
        f"{cli};sample (ovseg/backbones/unet.py:2);UNet2DConditionModel.forward (unet.py:3) 6",
        f"{cli};MuonAdamW.step (ovseg/optim.py:1);GroundingModule.training_step (g.py:2) 2",
        f"{cli};MuonAdamW.step (ovseg/optim.py:1);_zeropower_via_newtonschulz (_muon.py:3) 1",
        f"{cli};next (torch/utils/data/dataloader.py:5) 3",
        "process 1;main (ovseg/__main__.py:1);_find_and_load (importlib:2);loads (x.py:3) 5",
        "process 1;__init__ (lightning/pytorch/cli.py:1);parse (jsonargparse/a.py:2) 3",
    ]
    assert benchmark("where_time_goes").shares("\n".join(profile)) == pytest.approx(
        {
            "U-Net": 30,
            "start-up: imports": 25,
            "the rest: data, collectives, files": 15,
            "start-up: configuration": 15,
            "grounding modules": 10,
            "optimizer (Muon, AdamW)": 5,
        }
    )
    with pytest.raises(ValueError, match="no stack"):
        benchmark("where_time_goes").shares("")
