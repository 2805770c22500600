"""Tables in a terminal: those of a report, of a test, and of what a filter left of a dataset."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from ovseg.report import numbers
from ovseg.results_grounding import AVERAGES, bound, facts, published, rows
from ovseg.vocabulary import Vocabulary


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


def show_segmenter(
    results: Mapping[str, Mapping], vocabulary: Vocabulary, console: Console | None = None
) -> None:
    """Print what a test of a segmenter gave: a column per stream, a row per class.

    Args:
        results: Per stream, as results.json has them.
        vocabulary: Classes and split; seen classes come first.
        console: Where to print.
    """
    names = {vocabulary[i].key: vocabulary[i].name for i in (*vocabulary.seen, *vocabulary.unseen)}
    unseen = {vocabulary[i].key for i in vocabulary.unseen}
    table = _table("Segmenter, IoU of each class in percent", list(results), ())
    for key, name in names.items():
        cells = [numbers.percent(scores["per_class"].get(key)) for scores in results.values()]
        table.add_row(f"{name} (unseen)" if key in unseen else name, *cells)
    table.add_section()
    for key in numbers.SCORES:
        table.add_row(key, *(numbers.percent(scores[key]) for scores in results.values()))
    (console or Console()).print(table)


def show_grounder(
    results: Mapping[str, Mapping],
    method: str,
    vocabulary: Vocabulary,
    console: Console | None = None,
) -> None:
    """Print what a test of a grounder gave: others' rows, its own, its controls, per stream.

    Args:
        results: Per stream, as results.json has them.
        method: Name of its own row.
        vocabulary: Classes and split.
        console: Where to print.
    """
    console = console or Console()
    head, others = [name.replace("_", " ") for name in results], published(vocabulary, results)
    bodies = {
        f"Grounding, mIoU in percent, {title}": rows(results, method, key, others)
        for key, title in AVERAGES.items()
    }
    for title, body in {**bodies, "Beside it": facts(results)}.items():
        table, before = _table(title, head, ()), None
        for name, whose, values in body:
            if whose != before:  # others' rows, its own, its controls
                table.add_section()
            table.add_row(name, *map(numbers.percent, values))
            before = whose
        console.print(table)
    if remark := bound(results):
        console.print(remark, soft_wrap=True)


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
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("")
    for name in head:
        table.add_column(name, justify="right")
    for name, cells in rows:
        table.add_row(name, *cells)
    return table
