"""Bars per class as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

ROW, GAP, LEFT, WIDTH = 11, 8, 120, 460
"""Height of a bar, space between classes, room for names, length of 100 %, in SVG units."""


def bars(groups: Mapping[str, Mapping[str, float | None]], marked: Sequence[str] = ()) -> Markup:
    """Draw grouped horizontal bars from 0 to 100 percent.

    Args:
        groups: ``{series: {class name: percent or None}}``; series share the same classes.
        marked: Class names to mark as unseen.

    Returns:
        An ``<svg>`` element; series are coloured by the page's ``.series-0``, ``.series-1``...
    """
    names = list(next(iter(groups.values()), {}))
    step = ROW * len(groups) + GAP
    height = step * len(names) + 20
    parts = [_axis(height)]
    for row, name in enumerate(names):
        top = row * step + GAP / 2
        parts.append(_name(name, top + (step - GAP) / 2, name in marked))
        for number, (series, values) in enumerate(groups.items()):
            parts.append(_bar(values.get(name), top + number * ROW, number, f"{series}, {name}"))
    return Markup(
        '<svg class="bars" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">{body}</svg>'
    ).format(
        w=LEFT + WIDTH + 50,
        h=height,
        label=f"IoU per class in percent: {', '.join(groups)}",
        body=Markup("").join(parts),
    )


def _axis(height: int) -> Markup:
    lines = []
    for value in (0, 25, 50, 75, 100):
        x = LEFT + WIDTH * value / 100
        lines.append(
            f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="0" y2="{height - 18}"/>'
            f'<text class="tick" x="{x:g}" y="{height - 5}" text-anchor="middle">{value}</text>'
        )
    return Markup("".join(lines))


def _name(name: str, middle: float, unseen: bool) -> Markup:
    style, mark = ("name unseen", " ○") if unseen else ("name", "")
    return Markup(
        f'<text class="{style}" x="{LEFT - 8}" y="{middle + 4:g}" text-anchor="end">'
        f"{escape(name)}{mark}</text>"
    )


def _bar(value: float | None, top: float, number: int, label: str) -> Markup:
    if value is None:
        return Markup(f'<text class="tick" x="{LEFT + 4}" y="{top + ROW - 2:g}">–</text>')
    length = WIDTH * value / 100
    return Markup(
        f'<g><title>{escape(label)}: {value:.1f} %</title><rect class="series-{number}" '
        f'x="{LEFT}" y="{top:g}" width="{length:.1f}" height="{ROW - 1}" rx="2"/>'
        f'<text class="tick" x="{LEFT + length + 5:.1f}" y="{top + ROW - 2:g}">{value:.0f}</text>'
        "</g>"
    )
