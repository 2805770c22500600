"""The tables of a report in a terminal."""

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


def _table(title: str, head: list[str], rows) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in head:
        table.add_column(name, justify="right")
    for name, cells in rows:
        table.add_row(name, *cells)
    return table
