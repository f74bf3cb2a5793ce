"""How far the steps of a begun workflow are, as rows, and as its execution shows it.

Owns the tables `workflows` and `workflow_steps`. What the states mean for each other is
`kinds.workflow`'s; who moves them is `workflows` and `approvals`.
"""

from __future__ import annotations

import json

from ctrl_exec.common.errors import NotFoundError
from ctrl_exec.common.suppression import suppress
from ctrl_exec.common.value import fields, value
from ctrl_exec.tasks.execution.executions import WORKFLOW_CLAIMER, find_execution
from ctrl_exec.tasks.execution.lifecycle import NS
from ctrl_exec.tasks.forms import MOST_WHOLE, Form
from ctrl_exec.tasks.kinds_codec import decode_workflow, encode_kind
from ctrl_exec.tasks.models import PENDING, RUNNING
from ctrl_exec.tasks.store import packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Any

    from ctrl_exec.tasks.models import Execution, Step, Workflow
    from ctrl_exec.tasks.store import Store


@value
class StepState:
    """One step: PENDING, RUNNING, or how it ended.

    A RUNNING one has a `child_id`, or is an approval, which waits until `until_ns` for a `verdict`
    (`APPROVED`, `REJECTED`) by somebody.
    """

    place: int
    status: str = PENDING
    reason: str | None = None
    child_id: str | None = None
    until_ns: int | None = None
    verdict: str | None = None
    decided_by: str | None = None
    comment: str | None = None


_COLUMNS = tuple(each.name for each in fields(StepState))


@value
class Begun:
    """A workflow that was begun: its definition of that moment, its steps in order.

    `until_ns` ends its time; `ending` is ABORTED or TIMED_OUT once that is decided.
    """

    workflow: Workflow
    steps: tuple[StepState, ...]
    until_ns: int | None = None
    ending: str | None = None


def after(now_ns: int, wait_s: int) -> int:
    """The moment so long after now, or the last one that the database knows."""
    return min(MOST_WHOLE, now_ns + wait_s * NS)


def add_begun(store: Store, execution_id: str, workflow: Workflow, until_ns: int | None) -> None:
    """Keep that a workflow begins. Within the transaction that says so."""
    definition = packed(encode_kind(workflow))
    store.insert("workflows", {"execution_id": execution_id, "definition": definition, "until_ns": until_ns})
    for place, _ in enumerate(workflow.steps):
        store.insert("workflow_steps", {"execution_id": execution_id, "place": place, "status": PENDING})


def load_begun(store: Store, execution_id: str) -> Begun | None:
    """The workflow of an execution; None where none was begun. Raises: StorageError."""
    sql = "SELECT definition, until_ns, ending FROM workflows WHERE execution_id = ?"
    row = store.row(sql, (execution_id,))
    if row is None:
        return None
    workflow = decode_workflow(Form(json.loads(row["definition"])))
    columns = f"SELECT {', '.join(_COLUMNS)} FROM workflow_steps"
    rows = store.rows(f"{columns} WHERE execution_id = ? ORDER BY place", (execution_id,))
    return Begun(workflow, tuple(_of_row(each) for each in rows), row["until_ns"], row["ending"])


def _of_row(row: sqlite3.Row) -> StepState:
    return StepState(**dict(row))


def save_step(store: Store, execution_id: str, step: StepState) -> None:
    """Write one step as it is now."""
    names = [name for name in _COLUMNS if name != "place"]
    sets = ", ".join(f"{name} = ?" for name in names)
    sql = f"UPDATE workflow_steps SET {sets} WHERE execution_id = ? AND place = ?"
    store.execute(sql, (*(getattr(step, name) for name in names), execution_id, step.place))


def waiting_approvals(begun: Begun) -> tuple[tuple[StepState, Step], ...]:
    """The approvals that a workflow waits for, in order."""
    return tuple(
        (state, step)
        for state, step in zip(begun.steps, begun.workflow.steps, strict=True)
        if step.role and state.status == RUNNING and state.verdict is None
    )


def title_of(place: int, step: Step) -> str:
    """An approval by its place and name."""
    return f"step {place + 1}: approval {step.name}".rstrip()


def waits_for_approval(store: Store, execution: Execution) -> str | None:
    """In words, the approval that a RUNNING workflow waits for, itself or in a step; None for none."""
    if execution.claimer != WORKFLOW_CLAIMER or execution.status != RUNNING:
        return None
    begun = load_begun(store, execution.execution_id)
    if begun is None:
        return None
    for state, step in waiting_approvals(begun):
        return f"{title_of(state.place, step)} by {step.role}"
    for state in begun.steps:
        if state.status == RUNNING and state.child_id:
            with suppress(NotFoundError):
                child = find_execution(store, state.child_id)
                found = waits_for_approval(store, child)
                if found is not None:
                    # what another project calls its steps is not for everyone who may see this one
                    is_theirs = child.project_id != execution.project_id
                    return f"execution {state.child_id}: {'an approval' if is_theirs else found}"
    return None


def encode_steps(store: Store, execution: Execution) -> list[dict[str, Any]] | None:
    """The steps on the wire; None for what is no workflow, or has not begun."""
    if execution.claimer != WORKFLOW_CLAIMER:
        return None
    begun = load_begun(store, execution.execution_id)
    if begun is None:
        return None
    return [_encode(state, step) for state, step in zip(begun.steps, begun.workflow.steps, strict=True)]


def _encode(state: StepState, step: Step) -> dict[str, Any]:
    document: dict[str, Any] = {"step": state.place + 1}
    for key, content in (
        ("name", step.name or None),
        ("taskId", step.task_id or None),
        ("role", step.role or None),
        ("status", state.status),
        ("executionId", state.child_id),
        ("reason", state.reason),
        ("untilTs", state.until_ns),
        ("decidedBy", state.decided_by),
        ("comment", state.comment),
    ):
        if content is not None:
            document[key] = content
    return document


def is_under_way(store: Store, execution_id: str) -> bool:
    """Whether a workflow was begun and has no end yet: what its steps came to must stay on record."""
    sql = "SELECT 1 FROM executions WHERE execution_id = ? AND status IN ('PENDING', 'RUNNING', 'ABORTING')"
    return store.row(sql, (execution_id,)) is not None
