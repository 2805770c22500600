"""docs/clusters.md: its YAML is YAML, its scripts are shell, and its flags are ovseg's."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from ovseg.__main__ import main

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "clusters.md").read_text(), re.DOTALL)
SHELL = [text for kind, text in BLOCKS if kind == "bash"]
(JOB,) = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"]
(CONTAINER,) = JOB["spec"]["template"]["spec"]["containers"]


def commands():
    """Return the arguments of every `ovseg predict`, the variables replaced by a number."""
    lines = [line for text in [*SHELL, *CONTAINER["args"]] for line in joined(text).splitlines()]
    found = [re.sub(r"\$\w+", "1", line).partition("ovseg predict ")[2] for line in lines]
    return [shlex.split(arguments) for arguments in found if arguments]


def joined(text):
    return text.replace("\\\n", " ")


def test_there_is_one_command_for_each_way():
    given = [set(command) for command in commands()]
    assert len(given) == 4
    assert sum("--data.init_args.job_index" in flags for flags in given) == 2
    assert sum("--trainer.num_nodes" in flags for flags in given) == 2


@pytest.mark.parametrize("arguments", commands(), ids=["array", "nodes", "torchrun", "kubernetes"])
def test_the_flags_are_accepted(arguments, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as left:
        main(["predict", *arguments, "--print_config"])
    assert left.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    for flag, value in zip(arguments[::2], arguments[1::2], strict=True):
        place = config
        for key in flag.removeprefix("--").split("."):
            place = place[key] if key != "config" else None
            if place is None:
                break
        assert place is None or str(place).lower() == value


def test_a_wrong_flag_is_not(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    wrong = [*commands()[0][:2], "--data.init_args.job_number", "1"]
    assert main(["predict", *wrong, "--print_config"]) == 2
    assert "job_number" in capsys.readouterr().err


def test_the_scripts_are_shell():
    for text in [*SHELL, *CONTAINER["args"]]:
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_numbers_of_jobs_and_processes_agree():
    array, nodes = (dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", text)) for text in SHELL[:2])
    first, second, torchrun, kubernetes = (
        dict(zip(c[::2], c[1::2], strict=True)) for c in commands()
    )
    assert array["array"] == f"0-{int(first['--data.init_args.num_jobs']) - 1}"
    assert nodes["nodes"] == second["--trainer.num_nodes"] == torchrun["--trainer.num_nodes"]
    assert nodes["ntasks-per-node"] == second["--trainer.devices"] == torchrun["--trainer.devices"]
    assert JOB["spec"]["completionMode"] == "Indexed"
    number = int(kubernetes["--data.init_args.num_jobs"])
    assert number == JOB["spec"]["completions"] >= JOB["spec"]["parallelism"]
