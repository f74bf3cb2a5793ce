"""An execution has one carrier, and one end, whoever dies in between."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from ctrl_exec.common.errors import NotFoundError
from ctrl_exec.tasks.execution import carriage
from ctrl_exec.tasks.execution.carriage import ExecutionFiles
from ctrl_exec.tasks.execution.executions import (
    Start,
    claim,
    find_execution,
    request_execution,
    sealed_parameters,
)
from ctrl_exec.tasks.execution.lifecycle import NS, Outcome
from ctrl_exec.tasks.models import LocalCommand, Retry, Task
from ctrl_exec.tasks.store import Store
from tests.unit.tasks.conftest import Clock
from tests.unit.tasks.test_executions import TASK, add_task


def claimed(store: Store, claimer: str = "me", sealed: bytes | None = None) -> str:
    """The id of an execution that was claimed."""
    if store.row("SELECT 1 FROM tasks") is None:
        add_task(store)
    made = request_execution(store, Start(TASK, parameter_map={"A": 1}, user_id="u", sealed=sealed))
    assert claim(store, made.execution_id, claimer)
    return made.execution_id


def task(retry: Retry | None = None) -> Task:
    """Its task."""
    return Task(TASK, "p", "t", LocalCommand(program="/bin/true"), retry=retry)


def test_only_the_claimer_begins_and_only_once(store: Store) -> None:
    """Whoever's claim was given back does not."""
    execution_id = claimed(store)
    assert not carriage.begin(store, execution_id, "another")
    assert carriage.give_back(store, execution_id, "me")
    assert not carriage.begin(store, execution_id, "me")
    assert claim(store, execution_id, "second")
    assert carriage.begin(store, execution_id, "second")
    assert not carriage.begin(store, execution_id, "second")
    assert not carriage.give_back(store, execution_id, "second")
    found = find_execution(store, execution_id)
    assert (found.status, found.claimer) == ("RUNNING", "second")
    assert found.start_ns is not None


def test_an_end_is_written_once(store: Store) -> None:
    """The first word stands."""
    execution_id = claimed(store)
    carriage.begin(store, execution_id, "me")
    carriage.note_group(store, execution_id, 123, 456)
    carriage.note_run(store, execution_id, "00aa00aa00aa00aa")
    carriage.note_run(store, execution_id, "00aa00aa00aa00aa")
    carriage.end(store, task(), execution_id, Outcome("SUCCESS", 0))
    carriage.end(store, task(), execution_id, Outcome("LOST", None, "late"))
    found = find_execution(store, execution_id)
    assert (found.status, found.exit_code, found.reason) == ("SUCCESS", 0, None)
    assert (found.group_pid, found.group_started, found.runs) == (123, 456, ("00aa00aa00aa00aa",))
    assert carriage.carried(store) == ()


def test_a_failure_is_tried_again_with_the_same_parameters(store: Store, clock: Clock) -> None:
    """After its delay, also with what is sealed; as often as the task says."""
    execution_id = claimed(store, sealed=b"sealed")
    carriage.begin(store, execution_id, "me")
    again = carriage.end(store, task(Retry(2, delay_s=60)), execution_id, Outcome("FAILED", 1))
    assert again is not None
    assert (again.trigger, again.attempt, again.retry_of) == ("RETRY", 2, execution_id)
    assert (again.parameter_map, again.user_id) == ({"A": 1}, "u")
    assert sealed_parameters(store, again.execution_id) == b"sealed"
    assert not claim(store, again.execution_id, "me")
    clock.now_ns += 61 * NS
    assert claim(store, again.execution_id, "me")
    carriage.begin(store, again.execution_id, "me")
    assert carriage.end(store, task(Retry(2, delay_s=60)), again.execution_id, Outcome("FAILED", 1)) is None


def test_what_waits_is_aborted_at_once_and_what_runs_by_its_carrier(store: Store) -> None:
    """An abort that crosses the end is no error, and no retry follows one."""
    waiting = request_execution(store, Start(add_task(store))).execution_id
    assert carriage.abort(store, waiting) == "ABORTED"
    running = claimed(store)
    carriage.begin(store, running, "me")
    assert not carriage.is_aborting(store, running)
    assert carriage.abort(store, running) == "ABORTING"
    assert carriage.is_aborting(store, running)
    assert carriage.end(store, task(Retry(5)), running, Outcome("FAILED", 1)) is None
    assert carriage.abort(store, running) == "FAILED"
    with pytest.raises(NotFoundError):
        carriage.abort(store, "01J8ZWXQ1572KC6XGE7T74PT4Z")


def test_an_abort_between_claim_and_begin_is_seen_by_the_carrier(store: Store) -> None:
    """It begins nothing."""
    execution_id = claimed(store)
    assert carriage.abort(store, execution_id) == "ABORTING"
    assert not carriage.begin(store, execution_id, "me")
    assert [each.execution_id for each in carriage.carried(store)] == [execution_id]


def test_a_carried_execution_is_held_by_one_process(tmp_path: Path) -> None:
    """Its death lets it go."""
    held = ExecutionFiles(str(tmp_path / "executions"))
    execution_id = "01J8ZWXQ1572KC6XGE7T74PT4P"
    first = held.hold(execution_id)
    assert first is not None
    assert held.hold(execution_id) is None
    os.close(first)
    second = held.hold(execution_id)
    assert second is not None
    held.release(execution_id, second)
    assert os.listdir(tmp_path / "executions") == []
    with pytest.raises(ValueError, match="no execution's id"):
        held.log_path("../../etc/passwd")


def hold_in_turn(directory: str, execution_id: str, turns: int) -> None:
    """Hold it again and again; a file that only its holder makes and removes tells whether we are alone."""
    held = ExecutionFiles(directory)
    mark = f"{directory}/alone"
    while turns:
        fd = held.hold(execution_id)
        if fd is None:
            continue
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(mark)
        held.release(execution_id, fd)
        turns -= 1


def test_nobody_holds_a_lock_file_that_was_taken_away(tmp_path: Path) -> None:
    """A file that its holder unlinks between another's open and lock is held by nobody."""
    context = multiprocessing.get_context("fork")
    words = (str(tmp_path), "01J8ZWXQ1572KC6XGE7T74PT4P", 200)
    crowd = [context.Process(target=hold_in_turn, args=words) for _ in range(4)]
    for each in crowd:
        each.start()
    for each in crowd:
        each.join(60)
    assert [each.exitcode for each in crowd] == [0] * 4
    assert os.listdir(tmp_path) == []


def test_a_claimer_is_gone_with_its_process() -> None:
    """Also when its number is another's by now; of a name that says nothing, nothing is known."""
    own = carriage.new_claimer()
    assert not carriage.is_gone(own)
    pid, started, rest = own.split("-")
    assert carriage.is_gone(f"{pid}-{int(started) + 1}-{rest}")
    assert carriage.is_gone(f"4194305-{started}-{rest}")
    assert not carriage.is_gone("somebody")
    assert carriage.new_claimer() != own
