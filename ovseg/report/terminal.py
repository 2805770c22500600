"""Tables in a terminal: those of a report, and of what a filter left of a dataset."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ovseg.report import numbers


def show(report: dict, console: Console | None = None) -> None:
    """Print the tables of a report."""
    console = console or Console()
    names = ", ".join(report["unseen"])
    console.print(f"\nSplit {report['split']}; unseen: {names}. All numbers in percent.\n")
    head = [column.replace("_", " ") for column in numbers.COLUMNS]
    console.print(_table("Grounding, mIoU", head, numbers.grounding_rows(report)))
    head = [column.replace("_", " ") for column in numbers.CHOICES]
    console.print(_table("Right object of two", head, numbers.choice_rows(report)))
    head = [column.replace("_", " ") for column in numbers.COLUMNS]
    console.print(_table("Is it there? AUROC", head, numbers.presence_rows(report)))
    console.print(
        _table("Segmenter, mIoU", list(numbers.SCORES), numbers.segmentation_rows(report))
    )


def show_yield(title: str, numbers: dict, console: Console | None = None, rows: int = 10) -> None:
    """Print what was kept: the classes of which least was, and the reasons that cost most.

    Args:
        title: Stands above.
        numbers: `yield` of a `dataset.json`.
        console: Where to print.
        rows: At most so many of each.
    """
    console = console or Console()
    kept, made = numbers["kept"], numbers["kept"] + numbers["rejected"]
    console.print(f"{title}: {kept} of {made} samples kept{_percent(kept, made)}", soft_wrap=True)
    classes = sorted(numbers["classes"].items(), key=lambda item: _share(item[1]))
    lines = [
        (key, [str(n["asked"]), str(n["kept"]), f"{100 * _share(n):.1f}"])
        for key, n in classes[:rows]
    ]
    title = "Classes" if len(classes) <= rows else f"The {rows} poorest of {len(classes)} classes"
    console.print(_table(title, ["asked for", "kept", "%"], lines))
    reasons = sorted(numbers["reasons"].items(), key=lambda item: -item[1])
    if reasons:
        lines = [(kind, [str(count)]) for kind, count in reasons[:rows]]
        console.print(_table("Rejected for", ["samples"], lines))


def _share(numbers: dict) -> float:
    """Return which share of the samples that ask for a class was kept and shows it."""
    return numbers["kept"] / numbers["asked"]


def _percent(part: int, whole: int) -> str:
    return f" ({100 * part / whole:.1f} %)" if whole else ""


def _table(title: str, head: list[str], rows) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in head:
        table.add_column(name, justify="right")
    for name, cells in rows:
        table.add_row(name, *cells)
    return table
