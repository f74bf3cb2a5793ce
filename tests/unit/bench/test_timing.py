"""What is measured of a program: its time, its children's, the memory of its tree; turns; the table."""

from __future__ import annotations

import os
import sys

import pytest

from bench.row import SKIPPED, absent, measured
from bench.series import Series, at_most
from bench.table import render
from bench.timing import ProbeError, alternate, descendants, rss_bytes, run_program, tree_bytes

PYTHON = [sys.executable, "-I", "-c"]


def test_a_program_gives_its_output_and_time():
    usage = run_program([*PYTHON, "import sys; print('out'); print('wrong', file=sys.stderr)"])
    assert (usage.exit_code, usage.stdout, usage.stderr) == (0, b"out\n", b"wrong\n")
    assert usage.cpu_s > 0
    assert usage.wall_s > 0


def test_the_cpu_time_of_children_counts():
    spin = "\n  while time.process_time() < 0.5: pass"
    source = f"import os, time\nif os.fork():\n  os.wait()\nelse:{spin}"
    assert run_program([*PYTHON, source]).cpu_s >= 0.5


def test_the_peak_memory_is_that_of_the_whole_tree():
    hold = "bytearray(b'x' * 40_000_000)"
    source = f"import os, time\npid = os.fork()\nheld = {hold}\ntime.sleep(.3)\nif pid: os.wait()"
    assert run_program([*PYTHON, source], samples_memory=True).peak_bytes > 80_000_000


def test_a_program_that_fails_is_an_error_with_what_it_said():
    with pytest.raises(ProbeError, match=r"ended with 3: sorry"):
        run_program([*PYTHON, "import sys; sys.exit(print('sorry') or 3)"])


def test_a_program_that_does_not_end_is_killed():
    with pytest.raises(ProbeError, match="-9"):
        run_program([*PYTHON, "import time; time.sleep(60)"], timeout_s=0.2)


def test_memory_of_what_has_ended_is_nought():
    assert tree_bytes(2**22 - 1) == 0
    assert rss_bytes(os.getpid()) > 1_000_000
    assert os.getpid() in descendants(os.getpid())


def test_works_take_turns_and_change_who_goes_first():
    order: list[str] = []

    def work(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = alternate(3, a=lambda: work("a"), b=lambda: work("b"))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found["a"] == Series((1.0, 4.0, 5.0))


def test_the_table_has_a_line_for_each_row_and_no_number_for_what_is_not_there():
    rows = [
        measured("one", "a figure", ("ours ms", Series((2.5,))), "ms", at_most(2), floor=0.02),
        absent("two", "a feature", at_most(1.15), "no such tool", SKIPPED),
    ]
    header, rule, one, two = render(rows).splitlines()
    assert header.startswith("row")
    assert set(rule) == {"-", " "}
    assert "2.5 ms" in one
    assert "MISSED" in one
    assert "skipped" in two
    assert "(no such tool)" in two
