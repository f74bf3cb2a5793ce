"""Which executions start, and what becomes of those that nobody carries any more."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from ctrl_exec.common import process
from ctrl_exec.tasks.execution import carriage
from ctrl_exec.tasks.execution.carriage import ExecutionFiles
from ctrl_exec.tasks.execution.executions import Start, claim, find_execution, request_execution
from ctrl_exec.tasks.execution.lifecycle import NS, Outcome
from ctrl_exec.tasks.execution.starting import claim_next, end_group_here, next_moment_ns, recover, waits_for
from ctrl_exec.tasks.store import Store
from ctrl_exec.tasks.ulid import new_ulid
from tests.support.polling import eventually
from tests.unit.tasks.conftest import NOW_NS, Clock
from tests.unit.tasks.test_executions import DEFINITION, TASK, add_task


def add_tasks(store: Store, project_id: str, count: int) -> list[str]:
    """So many tasks of a project, each with an execution that waits; gives the executions."""
    known = {"created_ns": NOW_NS, "updated_ns": NOW_NS}
    store.insert("projects", {"project_id": project_id, "name": project_id, **known})
    made = []
    for number in range(count):
        task_id = new_ulid(NOW_NS)
        row = {
            "task_id": task_id, "project_id": project_id, "name": f"{number}", "task_type": "LOCAL_COMMAND",
            "user_id": "u", "is_enabled": 1, "policy": "REJECT", "max_concurrency": None, "version": 1,
            "definition": DEFINITION,
        }  # fmt: skip
        store.insert("tasks", row | known)
        made.append(request_execution(store, Start(task_id)).execution_id)
    return made


def test_no_more_start_than_may_run(store: Store) -> None:
    """The next one starts when one has ended, and the one that waits says so."""
    add_tasks(store, "a", 3)
    first, second = (claim_next(store, "me", max_running=2) for _ in range(2))
    assert first is not None
    assert second is not None
    assert claim_next(store, "me", max_running=2) is None
    waiting = next(
        found
        for row in store.rows("SELECT execution_id FROM executions WHERE claimer IS NULL")
        if (found := find_execution(store, row["execution_id"]))
    )
    assert waits_for(store, waiting, max_running=2) == "a place: 2 executions are under way"
    carriage.begin(store, first, "me")
    carriage.end(store, None, first, Outcome("SUCCESS", 0))
    assert waits_for(store, waiting, max_running=2) == "the scheduler"
    assert claim_next(store, "me", max_running=2) == waiting.execution_id
    assert waits_for(store, find_execution(store, first), max_running=2) is None


def test_a_project_with_many_does_not_hold_up_another(store: Store) -> None:
    """Places go in turn to the one that has the fewest."""
    many = add_tasks(store, "many", 10)
    few = add_tasks(store, "few", 2)
    started = [claim_next(store, "me", max_running=6) for _ in range(6)]
    assert set(few) <= set(started[:4])
    assert len(set(started) & set(many)) == 4


def test_one_that_waits_for_another_or_for_its_time_is_passed_over(store: Store, clock: Clock) -> None:
    """It blocks nobody, and says what it waits for."""
    add_task(store, "SMART_CHAINING")
    first = request_execution(store, Start(TASK)).execution_id
    assert claim_next(store, "me", max_running=9) == first
    carriage.begin(store, first, "me")
    chained = request_execution(store, Start(TASK))
    assert waits_for(store, chained, max_running=9) == f"execution {first} of the same task"
    later = add_task(store, task_id=new_ulid(NOW_NS))
    at_ns = clock.now_ns + 60 * NS
    timed = request_execution(store, Start(later, not_before_ns=at_ns))
    assert claim_next(store, "me", max_running=9) is None
    assert next_moment_ns(store) == at_ns
    assert waits_for(store, timed, max_running=9) == "its time, in 60s"
    clock.now_ns = at_ns
    assert claim_next(store, "me", max_running=9) == timed.execution_id
    assert next_moment_ns(store) is None


def test_what_was_claimed_and_never_begun_is_started_again(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    """After a moment in which its carrier may still come to life."""
    files = ExecutionFiles(str(tmp_path / "executions"))
    execution_id = request_execution(store, Start(add_task(store))).execution_id
    claim(store, execution_id, "dead")
    assert recover(store, files, end_group=end_group_here).given_back == ()
    clock.now_ns += 31 * NS
    assert recover(store, files, end_group=end_group_here).given_back == (execution_id,)
    assert not carriage.begin(store, execution_id, "dead")
    assert claim_next(store, "me", max_running=1) == execution_id


def test_a_claim_whose_process_is_dead_or_of_the_future_is_given_back_at_once(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    """Nothing will come of the one, and the clock was wrong when the other was made."""
    files = ExecutionFiles(str(tmp_path / "executions"))
    execution_id = request_execution(store, Start(add_task(store))).execution_id
    dead = process.fork_child(lambda: 0)
    claim(store, execution_id, f"{dead}-{carriage.started_at(dead)}-0")
    assert process.wait_status(dead) == (0, 0)
    assert recover(store, files, end_group=end_group_here).given_back == (execution_id,)
    claim(store, execution_id, carriage.new_claimer())
    assert recover(store, files, end_group=end_group_here).given_back == ()
    clock.now_ns -= 3600 * NS
    assert recover(store, files, end_group=end_group_here).given_back == (execution_id,)


def test_what_changed_while_others_were_recovered_is_judged_anew(store: Store, tmp_path: Path) -> None:
    """Begun and cut off after the look: its group is ended all the same. Removed since: passed over."""
    files = ExecutionFiles(str(tmp_path / "executions"))
    add_task(store, "CONCURRENCY")
    made = [request_execution(store, Start(TASK)).execution_id for _ in range(3)]
    for each in made:
        claim(store, each, "dead")
        carriage.begin(store, each, "dead")
    carriage.note_group(store, made[0], 1001, 1)
    ended = []

    def end_group(pid: int, _started: int) -> bool:
        ended.append(pid)
        if pid == 1001:
            carriage.note_group(store, made[1], 1002, 1)
            store.execute("DELETE FROM executions WHERE execution_id = ?", (made[2],))
        return True

    assert recover(store, files, end_group=end_group).lost == tuple(made[:2])
    assert ended == [1001, 1002]


def test_the_end_of_a_request_does_not_wait_for_who_executes_local_commands(
    store: Store, tmp_path: Path
) -> None:
    """The process that sends one is ours to end, and its end is said while that service is away."""
    files = ExecutionFiles(str(tmp_path / "executions"))
    execution_id = request_execution(store, Start(add_task(store))).execution_id
    definition = (
        '{"projectId": "p", "name": "t", "taskType": "HTTP_REQUEST", "httpRequestTask": {"url": "http://h"}}'
    )
    store.execute("UPDATE tasks SET task_type = 'HTTP_REQUEST', definition = ?", (definition,))
    claim(store, execution_id, "dead")
    carriage.begin(store, execution_id, "dead")
    reading, writing = os.pipe()

    def wait() -> None:
        os.setpgid(0, 0)
        os.close(writing)
        os.read(reading, 1)

    pid = process.fork_child(wait)
    os.close(reading)
    try:
        eventually(lambda: os.getpgid(pid) == pid)
        carriage.note_group(store, execution_id, pid, carriage.started_at(pid))
        found = recover(store, files, end_group=lambda _pid, _started: False)
    finally:
        os.close(writing)
        ended = process.wait_status(pid)
    assert found.lost == (execution_id,)
    assert ended == (-1, signal.SIGTERM)


def test_a_carrier_that_was_killed_leaves_nothing_running(store: Store, tmp_path: Path) -> None:
    """Its command's group is ended first; then the execution is LOST."""
    files = ExecutionFiles(str(tmp_path / "executions"))
    execution_id = request_execution(store, Start(add_task(store))).execution_id
    assert claim(store, execution_id, "me")
    null = os.open(os.devnull, os.O_RDWR)

    def carry() -> int:
        assert files.hold(execution_id) is not None
        carriage.begin(store, execution_id, "me")
        pid = process.spawn_held(
            ["/bin/bash", "-c", "trap '' TERM; sleep 600 & sleep 600"],
            environment={"PATH": "/usr/bin:/bin"},
            streams=(null, null, null),
            before_exec=lambda pid: carriage.note_group(store, execution_id, pid, carriage.started_at(pid)),
        )
        process.wait_status(pid)
        return 0

    carrier = process.fork_child(carry)
    os.close(null)
    eventually(lambda: find_execution(store, execution_id).group_pid is not None)
    group = find_execution(store, execution_id).group_pid
    assert group is not None
    assert recover(store, files, end_group=end_group_here).lost == ()
    os.kill(carrier, signal.SIGKILL)
    os.waitpid(carrier, 0)
    assert recover(store, files, end_group=lambda _pid, _started: False).lost == ()
    assert find_execution(store, execution_id).status == "RUNNING"
    # what is dying may take more than one look, on a machine that is busy
    eventually(lambda: recover(store, files, end_group=end_group_here).lost == (execution_id,), timeout_s=60)
    assert not process.is_group_alive(group)
    found = find_execution(store, execution_id)
    assert (found.status, found.reason) == ("LOST", "the process that carried it died")
    assert os.listdir(tmp_path / "executions") == []


def test_a_number_that_is_anothers_by_now_is_left_alone() -> None:
    """The same pid, started at another time, is not what the carrier left."""
    pid = process.spawn(
        ["/bin/sleep", "600"],
        environment={},
        stdin=0,
        stdout=1,
        stderr=2,
    )
    try:
        assert end_group_here(pid, carriage.started_at(pid) - 1)
        assert process.is_group_alive(pid)
    finally:
        process.end_group(pid, None)
        process.wait_status(pid)


def test_runs_of_a_dead_carrier_are_asked_for_their_end(store: Store, tmp_path: Path) -> None:
    """It is not lost while they go on, and has their outcome when they are over."""
    files = ExecutionFiles(str(tmp_path / "executions"))
    execution_id = request_execution(store, Start(add_task(store))).execution_id
    claim(store, execution_id, "dead")
    carriage.begin(store, execution_id, "dead")
    carriage.note_run(store, execution_id, "00aa00aa00aa00aa")
    known: list[Outcome | None] = [None]
    assert recover(store, files, end_group=end_group_here, outcome_of=lambda _: known[0]).lost == ()
    known[0] = Outcome("SUCCESS", 0)
    recover(store, files, end_group=end_group_here, outcome_of=lambda _: known[0])
    assert find_execution(store, execution_id).status == "SUCCESS"
