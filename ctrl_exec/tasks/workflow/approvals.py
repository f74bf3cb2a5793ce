"""Approvals that workflows wait for: given or refused, once, by somebody of the role that is named.

Owns who may, and that a verdict is on record before anything follows from it. What follows is
`workflows`'; a workflow waits without a process, and nothing but a verdict or its time ends that.
"""

from __future__ import annotations

from ctrl_exec.common.errors import ConflictError, DeniedError, InvalidFieldsError
from ctrl_exec.common.hook import INSUFFICIENT_PRIVILEGE
from ctrl_exec.common.masking import masked
from ctrl_exec.common.value import replace
from ctrl_exec.tasks import audit
from ctrl_exec.tasks.execution.execution_requests import find
from ctrl_exec.tasks.execution.executions import find_execution
from ctrl_exec.tasks.forms import Form, is_line
from ctrl_exec.tasks.models import RUNNING
from ctrl_exec.tasks.workflow.workflow_steps import load_begun, save_step, waiting_approvals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ctrl_exec.tasks.models import Execution, Step
    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.store import Store
    from ctrl_exec.tasks.workflow.workflow_steps import StepState

APPROVED = "APPROVED"
REJECTED = "REJECTED"
_ACTS = {APPROVED: "approve", REJECTED: "reject"}
_COMMENT_LIMIT = 1000
_MOST_STEPS = 200


def decide(
    store: Store,
    identity: Identity,
    execution_id: str,
    document: dict[str, Any],
    verdict: str,
    secrets: Callable[[Execution], Iterable[str]],
) -> Execution:
    """Approve or reject what a workflow waits for; `secrets` gives what is masked in the comment.

    Raises: InvalidFieldsError, also where several wait and none is named; NotFoundError; DeniedError for
    another role; ConflictError where nothing waits, or is decided already.
    """
    comment, wanted = _read(document)
    execution = find(store, identity, execution_id)
    if comment:
        comment = masked(comment, secrets(execution))
    with store.writing():
        execution = find_execution(store, execution_id)
        state, step = _chosen(identity, execution, _waiting(store, execution), wanted)
        if state.until_ns is not None and store.clock_ns() >= state.until_ns:
            raise ConflictError(f"step {state.place + 1}: the time for it is over")
        decided = replace(state, verdict=verdict, decided_by=identity.username, comment=comment or None)
        save_step(store, execution_id, decided)
        after = {"step": state.place + 1, "name": step.name, "role": step.role, "comment": comment}
        act = (_ACTS[verdict], "execution", execution_id)
        audit.record(store, identity, act, project_id=execution.project_id, after=after)
        store.touch()
    return find_execution(store, execution_id)


def _read(document: dict[str, Any]) -> tuple[str, int | None]:
    form = Form(document)
    comment = form.text("comment", "", most=_COMMENT_LIMIT)
    if not is_line(comment):
        form.refuse("comment", "expected one line of text")
    step = form.whole("step", 1, _MOST_STEPS, None)
    form.finish()
    return comment, step


def _waiting(store: Store, execution: Execution) -> tuple[tuple[StepState, Step], ...]:
    begun = load_begun(store, execution.execution_id) if execution.status == RUNNING else None
    return () if begun is None or begun.ending else waiting_approvals(begun)


def _chosen(
    identity: Identity,
    execution: Execution,
    waiting: tuple[tuple[StepState, Step], ...],
    wanted: int | None,
) -> tuple[StepState, Step]:
    """The one approval that is meant: the step that is named, or the only one that is theirs to decide."""
    found = [each for each in waiting if wanted in (None, each[0].place + 1)]
    if not found:
        where = "" if wanted is None else f"step {wanted} of "
        raise ConflictError(f"{where}execution {execution.execution_id} waits for no approval")
    theirs = [each for each in found if identity.has_role(execution.project_id, each[1].role)]
    if not theirs:
        needed = " or ".join(sorted({each[1].role for each in found}))
        detail = f"the role {needed} in {execution.project_id} is needed"
        raise DeniedError(INSUFFICIENT_PRIVILEGE, "insufficient privilege", detail)
    if len(theirs) > 1:
        places = ", ".join(str(each[0].place + 1) for each in theirs)
        raise InvalidFieldsError(f"step: required, several wait: {places}", {"step": f"expected of {places}"})
    return theirs[0]
