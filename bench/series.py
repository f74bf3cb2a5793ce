"""Arithmetic on repeated measurements: medians, spread, ratios, noise, and what misses a target.

Owns the words "noise" and "missed". Must not know what was measured or how.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MET, WITHIN_NOISE, MISSED = "met", "within noise", "MISSED"


@dataclass(frozen=True)
class Series:
    """The same thing measured several times, in one unit."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a series needs a value")

    @property
    def median(self) -> float:
        """The middle value."""
        return quantile(self.values, 0.5)

    @property
    def low(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest value."""
        return max(self.values)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        middle = self.median
        if not middle:
            return 0.0
        return (quantile(self.values, 0.75) - quantile(self.values, 0.25)) / 2 / abs(middle)


@dataclass(frozen=True)
class Target:
    """The limit a value is held to: at most it, or at least it."""

    limit: float
    is_most: bool = True

    def __str__(self) -> str:
        return f"{'≤' if self.is_most else '≥'} {self.limit:g}"

    def judge(self, value: float, noise: float) -> str:
        """`met`, `within noise` (missed by no more than this share), or `MISSED`."""
        if value <= self.limit if self.is_most else value >= self.limit:
            return MET
        # the same factor either way: with 1 - noise a very noisy figure would meet any lower limit
        if value <= self.limit * (1 + noise) if self.is_most else value * (1 + noise) >= self.limit:
            return WITHIN_NOISE
        return MISSED


def at_most(limit: float) -> Target:
    """A target that smaller values meet."""
    return Target(limit)


def at_least(limit: float) -> Target:
    """A target that larger values meet."""
    return Target(limit, is_most=False)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies, linear between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratio(ours: Series, base: Series) -> float:
    """Median over median."""
    return ours.median / base.median


def noise_of(*series: Series, floor: float = 0.0) -> float:
    """The noise of a figure made of these: their spreads at right angles, never below the floor."""
    return max(floor, math.hypot(*(each.spread for each in series)))


def straightness(points: Sequence[tuple[float, float]]) -> float:
    """R² of the straight line that fits the points best; 1 is a line."""
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    sxx = sum((x - mean_x) ** 2 for x, _ in points)
    sxy = sum((x - mean_x) * (y - mean_y) for x, y in points)
    syy = sum((y - mean_y) ** 2 for _, y in points)
    if not sxx or not syy:
        return 1.0
    return sxy * sxy / (sxx * syy)
