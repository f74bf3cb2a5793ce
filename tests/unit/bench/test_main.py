"""Groups measured again take the place of the old ones and say when."""

from __future__ import annotations

from typing import Any

from bench.__main__ import GROUPS, merged


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
