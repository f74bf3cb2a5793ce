"""Groups measured again take the place of the old ones and say when."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import GROUPS, merged, run_groups
from bench.row import FAILED, SKIPPED, Group, Row, measured
from bench.series import Series
from bench.session import Session


def results(date: str, **rows: list[str]) -> dict[str, Any]:
    about = {"date": date, "load_before": [0.0], "load_after": [0.0], "noise_floor": 0.02, "versions": {}}
    found = [{"group": group, "name": name, "at": date} for group, names in rows.items() for name in names]
    return {"environment": about, "rows": found, "curves": {}}


def test_groups_measured_again_take_the_place_of_the_old_ones():
    old = results("monday", tls=["a"], cli=["b", "c"], hook=["d"])
    found = merged(old, results("tuesday", cli=["b"], purge=["e"]))
    assert [(row["name"], row["at"]) for row in found["rows"]] == [
        ("a", "monday"), ("b", "tuesday"), ("d", "monday"), ("e", "tuesday"),
    ]  # fmt: skip
    assert found["environment"]["date"] == "monday"
    assert set(found["environment"]["measured_again"]) == {"cli", "purge"}


def test_groups_have_names_of_their_own():
    names = [group.name for group in GROUPS]
    assert len(names) == len(set(names))


def one(session: Session) -> Iterable[Row]:
    yield measured("one", "a figure", ("ours ms", Series((2.5,))), "ms")


def broken(session: Session) -> Iterable[Row]:
    yield from one(session)
    raise RuntimeError("no such luck")


def ended(session: Session) -> Iterable[Row]:
    yield from one(session)
    raise SystemExit(143)


def endless(session: Session) -> Iterable[Row]:
    yield from one(session)
    signal.raise_signal(signal.SIGALRM)  # which comes when all of the time is over


def options(output: Path) -> argparse.Namespace:
    return argparse.Namespace(quick=True, only=[], merge=False, output=output, keep=False)


def statuses(output: Path) -> list[tuple[str, str]]:
    found = json.loads((output / "results-partial.json").read_text())
    return [(row["group"], row["status"]) for row in found["rows"]]


def test_a_group_that_breaks_is_a_row_and_the_others_go_on(tmp_path: Path):
    groups = [Group("bad", "breaks", broken), Group("good", "works", one)]
    assert run_groups(groups, options(tmp_path), 60) == 1
    assert statuses(tmp_path) == [("bad", "shown"), ("bad", FAILED), ("good", "shown")]


def test_what_was_measured_is_written_when_the_run_is_ended_from_outside(tmp_path: Path):
    with pytest.raises(SystemExit):
        run_groups([Group("first", "works", one), Group("second", "is ended", ended)], options(tmp_path), 60)
    assert statuses(tmp_path) == [("first", "shown"), ("second", "shown")]


def test_a_group_is_broken_off_when_all_of_the_time_is_over(tmp_path: Path):
    assert run_groups([Group("long", "never ends", endless)], options(tmp_path), 60) == 1
    assert statuses(tmp_path) == [("long", "shown"), ("long", FAILED)]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_groups_that_have_no_time_left_are_named(tmp_path: Path):
    assert run_groups([Group("late", "comes late", one)], options(tmp_path), -1) == 0
    assert statuses(tmp_path) == [("late", SKIPPED)]
