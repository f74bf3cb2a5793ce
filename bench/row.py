"""A row of the table: a figure, its target, the series behind it, and what became of it.

Owns the form in which results are kept, printed and written to JSON. Must not know how to measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.series import MISSED, Series, Target, noise_of, ratio

if TYPE_CHECKING:
    from bench.session import Session

SKIPPED, SHOWN, FAILED = "skipped", "shown", "could not be measured"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `value` is None where nothing was measured; `noise` is a share of it; `series` holds what was
    measured, each name ending in its unit; `note` is a word for the reader.
    """

    name: str
    what: str
    value: float | None
    status: str
    unit: str = "×"
    target: Target | None = None
    noise: float = 0.0
    series: Mapping[str, Series] = field(default_factory=dict)
    note: str = ""
    group: str = ""

    @property
    def is_missed(self) -> bool:
        """Whether it makes the bench fail."""
        return self.status == MISSED

    def as_json(self) -> dict[str, Any]:
        """The row as results.json holds it."""
        return {
            "name": self.name, "group": self.group, "what": self.what,
            "value": _rounded(self.value), "unit": self.unit,
            "target": str(self.target) if self.target else None, "status": self.status,
            "noise": _rounded(self.noise), "note": self.note,
            "series": {
                name: {
                    "median": _rounded(each.median), "low": _rounded(each.low), "high": _rounded(each.high),
                    "spread": _rounded(each.spread), "values": [_rounded(one) for one in each.values],
                }
                for name, each in self.series.items()
            },
        }  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Rows that are measured together, for what they have in common is costly to set up."""

    name: str
    summary: str
    measure: Callable[[Session], Iterable[Row]]


def compared(
    name: str, what: str, ours: tuple[str, Series], base: tuple[str, Series], target: Target | None = None,
    *, floor: float = 0.0, note: str = "",
) -> Row:  # fmt: skip
    """The row of a ratio of ours to the baseline, each given as (name, series)."""
    value, noise = ratio(ours[1], base[1]), noise_of(ours[1], base[1], floor=floor)
    status = target.judge(value, noise) if target else SHOWN
    return Row(name, what, value, status, "×", target, noise, dict([ours, base]), note)


def measured(
    name: str, what: str, series: tuple[str, Series], unit: str, target: Target | None = None,
    *, floor: float = 0.0, note: str = "",
) -> Row:  # fmt: skip
    """The row of a plain figure."""
    value, noise = series[1].median, noise_of(series[1], floor=floor)
    status = target.judge(value, noise) if target else SHOWN
    return Row(name, what, value, status, unit, target, noise, dict([series]), note)


def absent(name: str, what: str, target: Target | None, note: str, status: str) -> Row:
    """The row of what can't be measured here, or not now."""
    return Row(name, what, None, status, "", target, note=note)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
