"""The states of an execution: which follows which, what an end means, when the next attempt is.

Owns the rules as pure functions, with every fact and the time as an argument. Knows no database and
no process.

    PENDING → RUNNING → SUCCESS | FAILED | TIMED_OUT | LOST
    PENDING → ABORTED | ABORTING,  RUNNING → ABORTING → ABORTED | SUCCESS | FAILED | LOST
    SKIPPED is a start that was not made
"""

from __future__ import annotations

from ctrl_exec.common.value import value
from ctrl_exec.tasks import models

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.tasks.models import Execution, Project, Task

NS = 1_000_000_000
DAY_NS = 86_400 * NS
LONGEST_DELAY_S = 7 * 86_400
CUT_OFF = "the process that carried it died"
KILLED_EXIT = 126

FOLLOWERS: dict[str, tuple[str, ...]] = {
    models.PENDING: (models.RUNNING, models.ABORTING, models.ABORTED, models.FAILED, models.LOST),
    models.RUNNING: (models.ABORTING, models.SUCCESS, models.FAILED, models.TIMED_OUT, models.LOST),
    models.ABORTING: (models.ABORTED, models.SUCCESS, models.FAILED, models.LOST),
}


@value
class Outcome:
    """How an attempt ended; `reason` says why where the exit code does not."""

    status: str
    exit_code: int | None = None
    reason: str | None = None


def of_command(
    exit_code: int, signal: int = 0, *, timed_out_s: float | None = None, is_aborted: bool = False
) -> Outcome:
    """What the end of a command means; `signal` is what it died of, 0 if of nothing."""
    if timed_out_s is not None:
        return Outcome(models.TIMED_OUT, KILLED_EXIT, f"timed out after {timed_out_s:g}s")
    if is_aborted:
        return Outcome(models.ABORTED, KILLED_EXIT if signal else exit_code, "aborted")
    if signal:
        return Outcome(models.FAILED, KILLED_EXIT, f"killed by signal {signal}")
    return Outcome(models.SUCCESS if exit_code == 0 else models.FAILED, exit_code)


def after_abort(outcome: Outcome, *, was_aborting: bool) -> Outcome:
    """The outcome of an execution that somebody wanted to end: its own, unless it was cut short."""
    if was_aborting and outcome.status == models.TIMED_OUT:
        return Outcome(models.ABORTED, outcome.exit_code, "aborted")
    return outcome


def timeout_s(task: Task, project: Project, default_s: float | None) -> float | None:
    """How long an attempt may take: the task's word, else its project's, else the instance's."""
    for each in (task, project):
        if each.timeout is not None:
            return float(each.timeout * models.UNIT_SECONDS[each.timeout_unit or "SECOND"])
    return default_s


def retention_days(task: Task, project: Project, default_days: int) -> int:
    """For how many days a finished execution is kept; 0: it goes when it ends, unless it failed."""
    for each in (task, project):
        if each.retention_days is not None:
            return each.retention_days
    return default_days


def is_over_at(execution: Execution, days: int, now_ns: int) -> bool:
    """Whether a finished execution's time is over. Failed ones of 0 days are kept for one."""
    if execution.end_ns is None or execution.status in models.OPEN_STATUSES:
        return False
    if days == 0 and execution.status not in (models.SUCCESS, models.SKIPPED, models.ABORTED):
        days = 1
    return now_ns >= execution.end_ns + days * DAY_NS


def next_attempt_ns(task: Task, execution: Execution, status: str, end_ns: int) -> int | None:
    """When it is tried again: not before this moment; None if it is not.

    What was aborted by somebody is not tried again, nor what the clock did not start.
    """
    retry = task.retry
    if retry is None or status not in (models.FAILED, models.TIMED_OUT, models.LOST):
        return None
    if execution.attempt >= retry.max_attempts:
        return None
    delay_s = min(LONGEST_DELAY_S, retry.delay_s * retry.backoff ** min(64, execution.attempt - 1))
    return end_ns + int(delay_s * NS)
