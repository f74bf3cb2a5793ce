"""What the end of an attempt means, and when the next one is."""

from __future__ import annotations

import pytest

from ctrl_exec.tasks import models
from ctrl_exec.tasks.execution import lifecycle
from ctrl_exec.tasks.execution.lifecycle import NS, Outcome
from ctrl_exec.tasks.models import Execution, LocalCommand, Project, Retry, Task

PROJECT = Project("p", "P")


def task(**facts: object) -> Task:
    """A task of the facts."""
    return Task("T", "p", "t", LocalCommand(program="/bin/true"), **facts)  # type: ignore[arg-type]


def execution(**facts: object) -> Execution:
    """An execution of the facts."""
    return Execution("E", "T", "p", "USER", **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "outcome"),
    [
        ({"exit_code": 0}, Outcome("SUCCESS", 0)),
        ({"exit_code": 3}, Outcome("FAILED", 3)),
        ({"exit_code": -1, "signal": 9}, Outcome("FAILED", 126, "killed by signal 9")),
        (
            {"exit_code": -1, "signal": 15, "timed_out_s": 1.5},
            Outcome("TIMED_OUT", 126, "timed out after 1.5s"),
        ),
        ({"exit_code": -1, "signal": 15, "is_aborted": True}, Outcome("ABORTED", 126, "aborted")),
    ],
)
def test_the_end_of_a_command_is_told_by_how_it_ended(facts: dict[str, object], outcome: Outcome) -> None:
    """Code, signal, time and abort."""
    assert lifecycle.of_command(**facts) == outcome  # type: ignore[arg-type]


def test_nothing_follows_a_final_state() -> None:
    """And every state has its place."""
    reached = {each for several in lifecycle.FOLLOWERS.values() for each in several}
    assert set(lifecycle.FOLLOWERS) == set(models.OPEN_STATUSES)
    assert reached | {models.PENDING, models.SKIPPED} == set(models.STATUSES)


def test_timeout_is_the_tasks_then_the_projects_then_the_instances() -> None:
    """In its unit."""
    project = Project("p", "P", timeout=2, timeout_unit="HOUR")
    assert lifecycle.timeout_s(task(timeout=30, timeout_unit="MINUTE"), project, 5.0) == 1800
    assert lifecycle.timeout_s(task(), project, 5.0) == 7200
    assert lifecycle.timeout_s(task(), PROJECT, 5.0) == 5
    assert lifecycle.timeout_s(task(), PROJECT, None) is None


def test_retries_wait_longer_each_time_and_end() -> None:
    """Delay by back-off; not after an abort or a success."""
    again = task(retry=Retry(max_attempts=3, delay_s=10, backoff=2.0))
    first, second, third = (execution(attempt=number) for number in (1, 2, 3))
    assert lifecycle.next_attempt_ns(again, first, "FAILED", 5 * NS) == 15 * NS
    assert lifecycle.next_attempt_ns(again, second, "LOST", 5 * NS) == 25 * NS
    assert lifecycle.next_attempt_ns(again, third, "FAILED", 5 * NS) is None
    assert lifecycle.next_attempt_ns(again, first, "ABORTED", 5 * NS) is None
    assert lifecycle.next_attempt_ns(again, first, "SUCCESS", 5 * NS) is None
    assert lifecycle.next_attempt_ns(task(), first, "FAILED", 5 * NS) is None


def test_a_back_off_without_measure_is_bounded() -> None:
    """A week is the longest delay."""
    again = task(retry=Retry(max_attempts=1000, delay_s=3600, backoff=10.0))
    at_ns = lifecycle.next_attempt_ns(again, execution(attempt=200), "FAILED", 0)
    assert at_ns == lifecycle.LONGEST_DELAY_S * NS


def test_retention_of_no_days_keeps_what_failed_for_one() -> None:
    """Somebody wants to see why."""
    ended = {"end_ns": 100 * NS}
    assert lifecycle.is_over_at(execution(status="SUCCESS", **ended), 0, 100 * NS)
    assert not lifecycle.is_over_at(execution(status="FAILED", **ended), 0, 100 * NS)
    assert lifecycle.is_over_at(execution(status="FAILED", **ended), 0, 100 * NS + lifecycle.DAY_NS)
    assert not lifecycle.is_over_at(execution(status="SUCCESS", **ended), 2, 100 * NS + lifecycle.DAY_NS)
    assert not lifecycle.is_over_at(execution(status="RUNNING"), 0, 10**20)
    assert lifecycle.retention_days(task(retention_days=0), PROJECT, 30) == 0
    assert lifecycle.retention_days(task(), PROJECT, 30) == 30
