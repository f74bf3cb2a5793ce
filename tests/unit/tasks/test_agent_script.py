"""What the run of an execution means whose carrier died, by what is on record of it."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctrl_exec.common.log import Log
from ctrl_exec.common.messages import HostResult
from ctrl_exec.services.records import new_record
from ctrl_exec.services.results import ResultStore
from ctrl_exec.tasks.execution.lifecycle import CUT_OFF, Outcome
from ctrl_exec.tasks.kinds.agent_script import outcome_of_runs
from ctrl_exec.tasks.models import Execution
from tests.unit.tasks.conftest import NOW_NS

FIRST, LAST = "a1b2c3d4e5f60001", "a1b2c3d4e5f60002"


class Desk:
    """Records of runs, and what recovery makes of them."""

    def __init__(self, directory: Path) -> None:
        self.results = ResultStore(str(directory / "runs"))
        self.runs = directory / "runs"
        self.lines = io.StringIO()
        log = Log("test", "stderr", "text", stream=self.lines)
        self._dispatcher: Any = SimpleNamespace(results=self.results, log=log)

    def begin(self, reqid: str) -> Any:
        return self.results.begin(new_record(reqid, "hello", ("host-a",), created=1737123456))

    def complete(self, reqid: str, exit_code: int = 0) -> None:
        journal = self.begin(reqid)
        state = "ok" if exit_code == 0 else "failed"
        journal.note(HostResult("host-a", "hello", state, exit=exit_code, reqid=reqid))
        journal.finish("completed")

    def outcome(self, *runs: str, status: str = "RUNNING") -> Outcome | None:
        execution = Execution(
            "01J8ZX0000QF3YV7C2M6D1K9SB", "t", "p", "USER", status=status, created_ns=NOW_NS, updated_ns=NOW_NS,
            runs=runs,
        )  # fmt: skip
        return outcome_of_runs(self._dispatcher, execution)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_what_is_complete_is_the_outcome(desk: Desk) -> None:
    desk.complete(FIRST, 3)
    desk.complete(LAST)
    assert desk.outcome(FIRST) == Outcome("FAILED", 1, "1 failed")
    assert desk.outcome(FIRST, LAST) == Outcome("SUCCESS", 0)


def test_what_goes_on_is_asked_again_and_cancelled_where_somebody_wants_it(desk: Desk) -> None:
    journal = desk.begin(FIRST)
    try:
        assert desk.outcome(FIRST) is None
        assert not (desk.runs / f"{FIRST}.cancel").exists()
        assert desk.outcome(FIRST, status="ABORTING") is None
        assert (desk.runs / f"{FIRST}.cancel").exists()
    finally:
        journal.finish("completed")


def test_a_run_that_was_noted_and_never_begun_is_lost_or_aborted(desk: Desk) -> None:
    """No record, no run: whoever wanted it aborted has it aborted."""
    assert desk.outcome(FIRST) == Outcome("LOST", None, CUT_OFF)
    assert desk.outcome(FIRST, status="ABORTING") == Outcome("ABORTED", None, "aborted")


def test_a_record_that_is_gone_hides_none_that_is_there(desk: Desk) -> None:
    desk.complete(LAST)
    assert desk.outcome(FIRST, LAST) == Outcome("SUCCESS", 0)
    journal = desk.begin(FIRST)
    try:
        assert desk.outcome(FIRST, LAST) is None
        assert desk.outcome(FIRST, "a1b2c3d4e5f60003") is None
    finally:
        journal.finish("completed")


def test_a_record_that_cannot_be_read_now_is_no_end(desk: Desk) -> None:
    """Nor does it keep recovery from all others; it is said."""
    desk.complete(FIRST)
    (desk.runs / f"{FIRST}.json").unlink()
    (desk.runs / f"{FIRST}.json").symlink_to("elsewhere")  # refused, as EIO would be
    assert desk.outcome(FIRST) is None
    assert "ACTION=task-recovery" in desk.lines.getvalue()
