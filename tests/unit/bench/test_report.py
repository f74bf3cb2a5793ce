"""The page's table: a line for each row, misses said plainly, the rest of the page left alone."""

from __future__ import annotations

import pytest

from bench.report import BEGIN, END, markdown, replace_between
from bench.row import SKIPPED, absent, measured
from bench.series import Series, at_most

ABOUT = {
    "date": "2026-01-01T00:00:00Z", "seconds": 9, "cores": 2, "cpu": "a processor", "memory_mb": 1, "system": "Debian",
    "kernel": "6", "python": "3.11", "openssl": "OpenSSL 3", "versions": {"ansible": "2.19"}, "load_before": [0.1],
    "load_after": [0.2], "noise_floor": 0.02,
}  # fmt: skip


def test_misses_stand_out_and_what_is_not_built_has_no_number():
    rows = [
        measured("cli-run", "a | b", ("ours ms", Series((2.5,))), "ms", at_most(2)),
        absent("cli-daemon", "a feature", at_most(1.15), "no such tool", SKIPPED),
    ]
    text = markdown({"environment": ABOUT, "rows": [row.as_json() for row in rows]})
    assert "### The command line" in text
    assert "**MISSED**" in text
    assert "| a feature (no such tool) | – | ≤ 1.15 |  | skipped |  |" in text
    assert text.count("###") == 1
    assert "ansible 2.19" in text


def test_groups_measured_in_a_run_of_their_own_are_named():
    moment = {"date": "2026-01-02T00:00:00Z", "load_before": [3.0], "load_after": [4.0]}
    about = ABOUT | {"measured_again": {"cli": moment, "tls": moment}}
    text = markdown({"environment": about, "rows": []})
    assert "In runs of their own: cli, tls at 2026-01-02T00:00:00Z (load 3.0 and 4.0)." in text


def test_only_what_is_between_the_marks_changes():
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = replace_between(page, "new\n")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert replace_between(once, "new\n") == once


def test_a_page_without_marks_is_an_error():
    with pytest.raises(ValueError, match="lacks"):
        replace_between("nothing", "new")
