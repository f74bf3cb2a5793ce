"""`WORKFLOW`: which step is next, which is left out, and what the end of all of them means.

Owns these rules as pure functions of the steps' states. Starts nothing and knows no database: what is
begun, and when it has ended, is `tasks.workflows`'.

    STOP        when the step has failed no other one begins, unless its condition says so
    CONTINUE    the next one begins all the same; the workflow has failed in the end either way
    condition   null       unless the workflow was stopped
                SUCCESS    … and the step that ran last has succeeded
                FAILURE    the step that ran last has failed, stopped or not
                ALWAYS     whatever happened before
"""

from __future__ import annotations

from ctrl_exec.common.value import value
from ctrl_exec.tasks.execution.lifecycle import KILLED_EXIT, Outcome
from ctrl_exec.tasks.models import ABORTED, FAILED, PENDING, RUNNING, SKIPPED, SUCCESS, TIMED_OUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ctrl_exec.tasks.models import Step, Workflow

STOPPED = "a step before it failed (STOP)"
_LEFT_OUT = {
    "SUCCESS": "condition SUCCESS: the step before failed",
    "FAILURE": "condition FAILURE: the step before succeeded",
}


@value
class Turn:
    """What comes next: the step at `place` begins, or is left out where there is a `reason`."""

    place: int
    reason: str = ""


def next_turn(workflow: Workflow, statuses: Sequence[str]) -> Turn | None:
    """The next one; None while nothing is to be begun or left out."""
    if workflow.mode == "CONCURRENT":
        reason = STOPPED if is_stopped(workflow, statuses) else ""
        return next((Turn(place, reason) for place, each in enumerate(statuses) if each == PENDING), None)
    stopped = has_failed = False
    for place, (step, status) in enumerate(zip(workflow.steps, statuses, strict=True)):
        if status == RUNNING:
            return None
        if status == PENDING:
            return Turn(place, _why_not(step, is_stopped=stopped, has_failed=has_failed))
        if status != SKIPPED:
            has_failed = status != SUCCESS
            stopped = stopped or (has_failed and step.on_failure == "STOP")
    return None


def _why_not(step: Step, *, is_stopped: bool, has_failed: bool) -> str:
    if step.condition == "ALWAYS":
        return ""
    if step.condition == "FAILURE":
        return "" if has_failed else _LEFT_OUT["FAILURE"]
    if is_stopped:
        return STOPPED
    return _LEFT_OUT["SUCCESS"] if step.condition == "SUCCESS" and has_failed else ""


def is_stopped(workflow: Workflow, statuses: Sequence[str]) -> bool:
    """Whether a step has failed after which nothing is to begin."""
    fine = (PENDING, RUNNING, SKIPPED, SUCCESS)
    return any(
        step.on_failure == "STOP" and status not in fine
        for step, status in zip(workflow.steps, statuses, strict=True)
    )


def outcome_of(statuses: Sequence[str], words: Sequence[str]) -> Outcome | None:
    """What the end of all steps means, None before it; `words` say of each what became of it."""
    if any(status in (PENDING, RUNNING) for status in statuses):
        return None
    failed = [word for word, status in zip(words, statuses, strict=True) if status not in (SUCCESS, SKIPPED)]
    if not failed:
        return Outcome(SUCCESS, 0)
    more = f"; {len(failed) - 1} more failed" if len(failed) > 1 else ""
    return Outcome(FAILED, 1, failed[0] + more)


def cut_short(status: str, timeout_s: float | None) -> Outcome:
    """The end of a workflow that was not let come to its own: `status` is ABORTED or TIMED_OUT."""
    if status == TIMED_OUT:
        return Outcome(TIMED_OUT, KILLED_EXIT, "timed out" + (f" after {timeout_s:g}s" if timeout_s else ""))
    return Outcome(ABORTED, None, "aborted")
