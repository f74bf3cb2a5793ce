"""Executions are requested under their task's policy, claimed once, and move only where they may."""

from __future__ import annotations

import json
import multiprocessing
from typing import Any

import pytest

from ctrl_exec.common.errors import NotFoundError
from ctrl_exec.tasks.execution.executions import (
    ExecutionFilter,
    PolicyError,
    Start,
    claim,
    claim_start,
    find_execution,
    list_executions,
    request_execution,
    sealed_parameters,
    transition,
)
from ctrl_exec.tasks.models import Schedule, Timer
from ctrl_exec.tasks.store import Store
from tests.unit.tasks.conftest import NOW_NS, Clock

DEFINITION = json.dumps(
    {
        "projectId": "p", "name": "t", "taskType": "LOCAL_COMMAND",
        "localCommandTask": {"program": "/bin/true"},
    }
)  # fmt: skip
TASK = "01J8ZWXQ1572KC6XGE7T74PT4P"


def add_task(store: Store, policy: str = "REJECT", most: int | None = None, task_id: str = TASK) -> str:
    known = {"created_ns": NOW_NS, "updated_ns": NOW_NS}
    if store.row("SELECT 1 FROM projects") is None:
        store.insert("projects", {"project_id": "p", "name": "p", **known})
    row = {
        "task_id": task_id, "project_id": "p", "name": task_id, "task_type": "LOCAL_COMMAND", "user_id": "u",
        "is_enabled": 1, "policy": policy, "max_concurrency": most, "version": 1, "definition": DEFINITION,
    }  # fmt: skip
    store.insert("tasks", row | known)
    return task_id


def start_running(store: Store, execution_id: str) -> None:
    assert claim(store, execution_id, "me")
    assert transition(store, execution_id, ("PENDING",), "RUNNING", {"start_ns": 1})


def statuses(store: Store) -> list[str]:
    return [each.status for each in reversed(list_executions(store, ExecutionFilter()))]


def test_reject_lets_one_be_under_way(store: Store) -> None:
    add_task(store)
    first = request_execution(store, Start(TASK, user_id="u", parameter_map={"A": 1}))
    assert (first.status, first.trigger, first.parameter_map) == ("PENDING", "USER", {"A": 1})
    assert find_execution(store, first.execution_id) == first
    with pytest.raises(PolicyError, match=first.execution_id):
        request_execution(store, Start(TASK))
    start_running(store, first.execution_id)
    with pytest.raises(PolicyError):
        request_execution(store, Start(TASK))
    assert transition(store, first.execution_id, ("RUNNING",), "SUCCESS", {"end_ns": 2, "exit_code": 0})
    request_execution(store, Start(TASK))
    assert statuses(store) == ["SUCCESS", "PENDING"]


def test_smart_chaining_has_one_wait(store: Store) -> None:
    add_task(store, "SMART_CHAINING")
    first = request_execution(store, Start(TASK))
    start_running(store, first.execution_id)
    second = request_execution(store, Start(TASK))
    with pytest.raises(PolicyError, match="pending"):
        request_execution(store, Start(TASK))
    assert not claim(store, second.execution_id, "me"), "it waits for the one before"
    transition(store, first.execution_id, ("RUNNING",), "FAILED", {"end_ns": 1})
    assert claim(store, second.execution_id, "me")


def test_replacement_aborts_what_runs_and_starts_when_it_is_gone(store: Store) -> None:
    add_task(store, "REPLACEMENT")
    first = request_execution(store, Start(TASK))
    start_running(store, first.execution_id)
    request_execution(store, Start(TASK))
    third = request_execution(store, Start(TASK))
    assert statuses(store) == ["ABORTING", "ABORTED", "PENDING"]
    assert not claim(store, third.execution_id, "me")
    transition(store, first.execution_id, ("ABORTING",), "ABORTED", {"end_ns": 1})
    assert claim(store, third.execution_id, "me")


def test_concurrency_has_its_number(store: Store) -> None:
    add_task(store, "CONCURRENCY", 2)
    for _ in range(2):
        start_running(store, request_execution(store, Start(TASK)).execution_id)
    with pytest.raises(PolicyError, match="2 may be"):
        request_execution(store, Start(TASK))


def test_an_unknown_task_is_not_executed(store: Store) -> None:
    with pytest.raises(NotFoundError):
        request_execution(store, Start(TASK))
    with pytest.raises(NotFoundError):
        find_execution(store, TASK)


def test_a_claim_is_had_once_and_not_before_its_time(store: Store, clock: Clock) -> None:
    add_task(store)
    waiting = request_execution(store, Start(TASK, not_before_ns=clock.now_ns + 10**12))
    assert not claim(store, waiting.execution_id, "a")
    clock.now_ns += 10**12
    assert claim(store, waiting.execution_id, "a")
    assert not claim(store, waiting.execution_id, "b")
    assert find_execution(store, waiting.execution_id).claimer == "a"


def test_a_final_state_stays_and_forgets_sealed_parameters(store: Store) -> None:
    add_task(store)
    made = request_execution(store, Start(TASK, sealed=b"sealed"))
    assert sealed_parameters(store, made.execution_id) == b"sealed"
    start_running(store, made.execution_id)
    assert transition(store, made.execution_id, ("RUNNING",), "LOST", {"reason": "gone", "runs": ("ab12",)})
    assert not transition(store, made.execution_id, ("RUNNING",), "SUCCESS")
    assert sealed_parameters(store, made.execution_id) is None
    found = find_execution(store, made.execution_id)
    assert (found.status, found.reason, found.runs) == ("LOST", "gone", ("ab12",))
    with pytest.raises(ValueError, match="no column"):
        transition(store, made.execution_id, ("LOST",), "LOST", {"nonsense": 1})


def add_timer(store: Store, task_id: str = TASK) -> Timer:
    timer = Timer(f"{task_id}:0", task_id, Schedule("* * * * *"), NOW_NS)
    row = {
        "timer_id": timer.timer_id, "task_id": task_id, "cron_expression": "* * * * *", "timezone": None,
        "parameter_map": "{}", "since_ns": NOW_NS, "seen_ns": None, "version": 1,
    }  # fmt: skip
    store.insert("timers", row)
    return timer


def test_a_start_by_the_clock_is_made_once(store: Store) -> None:
    add_task(store)
    timer = add_timer(store)
    made = claim_start(store, timer, 1000, parameter_map={})
    assert made is not None
    assert (made.trigger, made.scheduled_ns, made.status, made.user_id) == ("SCHEDULE", 1000, "PENDING", "u")
    assert claim_start(store, timer, 1000, parameter_map={}) is None
    assert claim_start(store, timer, 999, parameter_map={}) is None
    refused = claim_start(store, timer, 2000, parameter_map={})
    assert refused is not None
    assert (refused.status, refused.reason) == ("SKIPPED", "POLICY")
    store.execute("UPDATE tasks SET is_enabled = 0")
    off = claim_start(store, timer, 3000, parameter_map={})
    assert off is not None
    assert off.reason == "DISABLED"
    missed = claim_start(store, timer, 4000, parameter_map={}, skip_reason="MISSED")
    assert missed is not None
    assert missed.reason == "MISSED"
    store.execute("UPDATE timers SET version = 2")
    assert claim_start(store, timer, 5000, parameter_map={}) is None, "the schedule is no longer this one"


def race(path: str, way: str, argument: Any, out: Any) -> None:
    with Store(path) as store:
        if way == "claim":
            out.put(claim(store, argument, "x"))
        elif way == "start":
            out.put(claim_start(store, argument, 1000, parameter_map={}) is not None)
        else:
            try:
                request_execution(store, Start(TASK))
                out.put(True)
            except PolicyError:
                out.put(False)


@pytest.mark.parametrize("way", ["claim", "start", "request"])
def test_of_many_processes_one_wins(store: Store, way: str) -> None:
    add_task(store)
    argument: Any = add_timer(store)
    if way == "claim":
        argument = request_execution(store, Start(TASK)).execution_id
    store.close()
    context = multiprocessing.get_context("fork")
    out = context.SimpleQueue()
    crowd = [context.Process(target=race, args=(store.path, way, argument, out)) for _ in range(6)]
    for each in crowd:
        each.start()
    won = [out.get() for _ in crowd]
    for each in crowd:
        each.join(60)
    assert sorted(won) == [False] * 5 + [True]


def test_lists_are_filtered_and_paged(store: Store, clock: Clock) -> None:
    other = add_task(store, "CONCURRENCY", task_id="01J8ZWXQ1572KC6XGE7T74PT4Q")
    add_task(store, "CONCURRENCY")
    made = [request_execution(store, Start(TASK)).execution_id for _ in range(5)]
    request_execution(store, Start(other))
    start_running(store, made[0])
    page = list_executions(store, ExecutionFilter(task_id=TASK), limit=2)
    assert [each.execution_id for each in page] == [made[4], made[3]]
    rest = list_executions(store, ExecutionFilter(task_id=TASK), before_id=made[3])
    assert [each.execution_id for each in rest] == [made[2], made[1], made[0]]
    running = list_executions(store, ExecutionFilter(statuses=("RUNNING",)))
    assert [each.execution_id for each in running] == [made[0]]
    assert list_executions(store, ExecutionFilter(project_ids=())) == ()
    assert len(list_executions(store, ExecutionFilter(project_ids=("p",), from_ns=NOW_NS))) == 6
    assert list_executions(store, ExecutionFilter(to_ns=NOW_NS)) == ()
