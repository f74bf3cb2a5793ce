"""Growth curves as SVG: axes, lines with their names, readable on light and dark ground.

Owns the drawing only. Text and axes follow the reader's colour scheme through `prefers-color-scheme`;
the colours of the lines are readable on both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 170, 48, 56
_COLOURS = ("#2f7ed8", "#d9662b", "#2a9d6f", "#a05fc4", "#c2355b")
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-size: 16px; font-weight: 600 }
.axis { stroke: #57606a; stroke-width: 1 }
.grid { stroke: #57606a; stroke-opacity: .2; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .axis, .grid { stroke: #9da7b3 }
}
"""


@dataclass(frozen=True)
class Curve:
    """One line: its name and its points (x, y), y perhaps with the lowest and highest measured."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """What the drawing says around its lines."""

    title: str
    x_label: str
    y_label: str


def steps(highest: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to at least the highest, about that many."""
    if highest <= 0:
        return [0.0, 1.0]
    raw = highest / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= raw * (1 - 1e-9))
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def draw(chart: Chart, curves: Sequence[Curve]) -> str:
    """The SVG document."""
    xs = steps(max((x for curve in curves for x, _ in curve.points), default=0))
    ys = steps(max((y for curve in curves for _, y in curve.points), default=0))
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(x: float) -> float:
        return _LEFT + inner_width * x / xs[-1]

    def down(y: float) -> float:
        return _TOP + inner_height * (1 - y / ys[-1])

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(chart.title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="26">{escape(chart.title)}</text>',
    ]
    for x in xs:
        parts.append(_text(across(x), _HEIGHT - _BOTTOM + 20, f"{x:g}", "middle"))
    for y in ys:
        parts.append(_rule("grid", _LEFT, down(y), _WIDTH - _RIGHT, down(y)))
        parts.append(_text(_LEFT - 8, down(y) + 4, f"{y:g}", "end"))
    parts += [
        _rule("axis", _LEFT, down(0), _WIDTH - _RIGHT, down(0)),
        _rule("axis", _LEFT, _TOP, _LEFT, down(0)),
        _text(_LEFT + inner_width / 2, _HEIGHT - 14, chart.x_label, "middle"),
        (
            f'<text x="{-_TOP - inner_height / 2:g}" y="20" text-anchor="middle" transform="rotate(-90)">'
            f"{escape(chart.y_label)}</text>"
        ),
    ]
    labels = _apart([down(curve.points[-1][1]) for curve in curves])
    for number, curve in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        placed = [(across(x), down(y)) for x, y in curve.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>' for x, y in placed]
        parts.append(
            f'<text x="{placed[-1][0] + 10:.1f}" y="{labels[number] + 4:.1f}" style="fill: {colour}">'
            f"{escape(curve.name)}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def _apart(heights: Sequence[float], gap: float = 17) -> list[float]:
    """The heights moved down until no two labels overlap, in their order from above."""
    placed = list(heights)
    lowest = -math.inf
    for index in sorted(range(len(heights)), key=lambda each: heights[each]):
        placed[index] = lowest = max(heights[index], lowest + gap)
    return placed


def _rule(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
