"""What the benchmarks share: interleaved timing, the machine in one line, results as JSON.

A benchmark compares forms of the same work within one run: the forms take turns, so that whatever
else the machine does hits all alike, and the result is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch


def parser(description: str, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--repeats", type=int, default=repeats, help="rounds that are measured")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--out", type=Path, help="JSON file for the result")
    return made


def machine(device: str = "cpu") -> dict[str, str | int]:
    """Return what a number depends on: processor or GPU, threads, versions."""
    name = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), name)
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "diffusers", "transformers")},
    }


def interleave(
    cases: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Run the cases in turn and time each call.

    Args:
        cases: Name and work; each is run once before the first measured round.
        repeats: Measured rounds.
        device: Waited for at the end of each call if it is a GPU.
        clock: Gives seconds; `time.process_time` does not count what others do on the processor.

    Returns:
        Seconds of each round by name.
    """
    if repeats < 1:
        raise SystemExit(f"repeats must be >= 1, got {repeats}")
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, work in cases.items():
            wait(device)
            start = clock()
            work()
            wait(device)
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def wait(device: str) -> None:
    """Wait for a GPU's work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most, to four significant digits."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {key: float(f"{value:.4g}") for key, value in found.items()}


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return the spread of the ratio, round by round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def finish(name: str, result: dict, device: str, out: Path | None) -> dict:
    """Print a result, and write it if asked to.

    Returns:
        The result with the benchmark's name and the machine.
    """
    result = {"benchmark": name, **result, "machine": machine(device)}
    text = json.dumps(result, indent=2)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    return result
