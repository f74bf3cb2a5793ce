"""Medians, ratios, noise, and what counts as missed."""

from __future__ import annotations

import pytest

from bench.row import SKIPPED, absent, compared, measured
from bench.series import (
    MET,
    MISSED,
    WITHIN_NOISE,
    Series,
    at_least,
    at_most,
    noise_of,
    quantile,
    ratio,
    straightness,
)


def test_the_median_is_the_middle_value_or_between_two():
    assert Series((9.0, 1.0, 5.0)).median == 5.0
    assert Series((1.0, 2.0, 4.0, 9.0)).median == 3.0


def test_quantiles_are_linear_between_neighbours():
    assert quantile([0, 10, 20, 30, 40], 0.25) == 10
    assert quantile([0, 10], 0.99) == pytest.approx(9.9)
    assert quantile([7], 0.5) == 7


def test_the_spread_is_half_the_distance_of_the_quartiles_over_the_median():
    assert Series((8.0, 9.0, 10.0, 11.0, 12.0)).spread == pytest.approx(0.1)
    assert Series((5.0,)).spread == 0
    assert Series((0.0, 0.0)).spread == 0


def test_one_outlier_does_not_make_noise():
    assert Series((10.0, 10.0, 10.0, 10.0, 90.0)).spread == 0


def test_a_series_needs_a_value():
    with pytest.raises(ValueError, match="needs a value"):
        Series(())


def test_a_ratio_is_median_over_median():
    assert ratio(Series((1.0, 2.0, 3.0)), Series((4.0, 8.0, 100.0))) == 0.25


def test_noises_add_at_right_angles_and_have_a_floor():
    three, four = Series((97.0, 100.0, 103.0)), Series((96.0, 100.0, 104.0))
    assert noise_of(three, four) == pytest.approx(0.025)
    assert noise_of(three, four, floor=0.04) == 0.04


@pytest.mark.parametrize(
    ("target", "value", "noise", "verdict"),
    [
        (at_most(2.0), 2.0, 0.0, MET),
        (at_most(2.0), 2.1, 0.1, WITHIN_NOISE),
        (at_most(2.0), 2.3, 0.1, MISSED),
        (at_least(8.0), 8.0, 0.0, MET),
        (at_least(8.0), 7.5, 0.1, WITHIN_NOISE),
        (at_least(8.0), 7.0, 0.1, MISSED),
        (at_least(8.0), 2.0, 1.5, MISSED),
    ],
)
def test_a_target_is_missed_only_by_more_than_the_noise(target, value, noise, verdict):
    assert target.judge(value, noise) == verdict


def test_targets_read_as_they_are_written():
    assert [str(at_most(0.22)), str(at_least(8))] == ["≤ 0.22", "≥ 8"]


def test_a_straight_line_has_r_squared_one_and_a_bent_one_less():
    assert straightness([(1, 2), (2, 4), (3, 6)]) == pytest.approx(1)
    assert straightness([(1, 1), (2, 4), (3, 9), (10, 100)]) < 0.99
    assert straightness([(1, 5), (2, 5)]) == 1


def test_a_compared_row_holds_both_series_and_fails_only_when_missed():
    row = compared("x", "what", ("a ms", Series((3.0,))), ("b ms", Series((2.0,))), at_most(1.2), floor=0.02)
    assert row.is_missed
    assert row.value == 1.5
    shown = row.as_json()
    assert shown["series"]["a ms"]["median"] == 3.0
    assert (shown["target"], shown["status"]) == ("≤ 1.2", MISSED)


def test_a_row_without_a_target_or_without_a_figure_never_fails():
    assert not measured("x", "what", ("a ms", Series((3.0,))), "ms").is_missed
    missing = absent("y", "what", at_most(1), "no such tool", SKIPPED)
    assert not missing.is_missed
    assert (missing.status, missing.as_json()["value"]) == (SKIPPED, None)
