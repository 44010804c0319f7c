"""Plots as inline SVG: bars, and points in a plane."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LEFT, _RIGHT, _BAR, _GAP = 800, 210, 150, 16, 10  # pixels
_CHARACTER = 6.6  # width of one, at the size of a label


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        value: its length, in any unit.
        text: what stands behind it.
        kind: of the series it belongs to: 0 to 3.
        mark: a value to draw a line at; None for none.
    """

    value: float
    text: str
    kind: int = 0
    mark: float | None = None


def bars(title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Bars from the left, those of one label below each other; all on one scale that begins at zero.

    Example:
        >>> print(bars("bytes", [("dense", [Bar(10.0, "10")])]))
        <svg viewBox="0 0 800 36" role="img"><title>bytes</title>
        <text class="name" x="200" y="22">dense</text>
        <rect class="k0" x="210" y="10" width="440.0" height="16"/><text x="656.0" y="22">10</text>
        </svg>
    """
    everything = [bar for _, group in groups for bar in group]
    most = max((max(bar.value, bar.mark or 0.0) for bar in everything), default=0.0) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    parts, y = [], _GAP
    for label, group in groups:
        parts.append(f'<text class="name" x="{_LEFT - 10}" y="{y + 12}">{escape(shortened(label, _LEFT - 10))}</text>')
        for bar in group:
            parts.append(_bar(bar, y, scale))
            y += _BAR + 2
        y += _GAP - 2
    return _svg(title, y, parts)


def points(title: str, across: str, up: str, found: Sequence[tuple[str, float, float]]) -> str:
    """Labelled points; the axis across is logarithmic.

    Args:
        title: for those who cannot see it.
        across: what the axis to the right is.
        up: what the axis upwards is.
        found: label, place to the right (positive) and place upwards of each.
    """
    height, bottom, left = 260, 220, 90
    xs, ys = [math.log10(x) for _, x, _ in found], [y for _, _, y in found]
    parts = [
        f'<path class="axis" d="M{left} 20V{bottom}H{_WIDTH - 20}"/>',
        f'<text class="name" x="{_WIDTH - 20}" y="{bottom + 32}">{escape(across)}</text>',
        f'<text x="{left}" y="12">{escape(up)}</text>',
    ]
    for end in dict.fromkeys((min(ys), max(ys))):
        top = _place(end, ys, bottom - 20, 40) + 4
        parts += [f'<text class="name" x="{left - 8}" y="{top:.1f}">{end:.4g}</text>']
    for (label, x, y), where in zip(found, xs, strict=True):
        right, top = _place(where, xs, left + 30, _WIDTH - 170), _place(y, ys, bottom - 20, 40)
        words = f"{label} ({x:,.0f}; {y:.4g})"
        parts.append(
            f'<circle class="k0" cx="{right:.1f}" cy="{top:.1f}" r="5"><title>{escape(words)}</title></circle>'
        )
        parts.append(f'<text x="{right + 9:.1f}" y="{top + 4:.1f}">{escape(shortened(label, 150))}</text>')
    return _svg(title, height, parts)


def shortened(text: str, width: float) -> str:
    """A label that fits into so many pixels.

    Example:
        >>> shortened("sparse + int8", 200), shortened("sparse + int8", 60)
        ('sparse + int8', 'sparse +...')
    """
    fits = int(width / _CHARACTER)
    return text if len(text) <= fits else text[: max(1, fits - 1)].rstrip() + "..."


def _bar(bar: Bar, y: int, scale: float) -> str:
    width = max(bar.value * scale, 1.0)
    text = f'<rect class="k{bar.kind}" x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}"/>'
    if bar.mark is not None:
        x = _LEFT + bar.mark * scale
        text += f'<path class="mark" d="M{x:.1f} {y - 2}V{y + _BAR + 2}"/>'
    return (
        text
        + f'<text x="{_LEFT + max(width, (bar.mark or 0.0) * scale) + 6:.1f}" y="{y + 12}">{escape(bar.text)}</text>'
    )


def _place(value: float, among: Sequence[float], first: float, last: float) -> float:
    """Where between two pixels; in the middle if all values are one."""
    least, most = min(among), max(among)
    return (first + last) / 2 if most == least else first + (last - first) * (value - least) / (most - least)


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img"><title>{escape(title)}</title>'
    return "\n".join([head, *parts, "</svg>"])
