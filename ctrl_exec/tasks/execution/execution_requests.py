"""Executions as users ask for them: started, seen, aborted, tried again, removed, with somebody's rights.

Owns who may do what, and an execution's form on the wire. A project without a role for one does not
exist; logs need more than the right to run. What an execution does is its carrier's.
"""

from __future__ import annotations

from ctrl_exec.common.errors import ConflictError, NotFoundError
from ctrl_exec.tasks import audit
from ctrl_exec.tasks.definitions import find_task
from ctrl_exec.tasks.execution import carriage
from ctrl_exec.tasks.execution.execution_log import remove_log
from ctrl_exec.tasks.execution.executions import (
    ExecutionFilter,
    Start,
    find_execution,
    list_executions,
    request_execution,
)
from ctrl_exec.tasks.execution.starting import waits_for
from ctrl_exec.tasks.forms import Form
from ctrl_exec.tasks.models import (
    ADVANCED_EXECUTOR,
    EXECUTOR,
    MANAGER,
    OPEN_STATUSES,
    SKIPPED,
    STATUSES,
    VIEWER,
)
from ctrl_exec.tasks.parameters import complete, secret_names
from ctrl_exec.tasks.people.rights import rights_to_keep
from ctrl_exec.tasks.projects import find_project
from ctrl_exec.tasks.ulid import ULID
from ctrl_exec.tasks.workflow.workflow_steps import encode_steps, is_under_way

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ctrl_exec.tasks.execution.carriage import ExecutionFiles
    from ctrl_exec.tasks.models import Execution, Task
    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.store import Store

    Seal = Callable[[dict[str, Any]], bytes]

START_KEYS = ("taskId", "parameterMap")
MASKED = "********"


def start(
    store: Store,
    identity: Identity,
    document: dict[str, Any],
    seal: Seal,
    *,
    made: tuple[str, int] | None = None,
) -> Execution:
    """Have a task executed as the document says; `seal` encrypts the values of SECRET parameters.

    `made`: the execution's id and its time, where they are known already.

    Raises: InvalidFieldsError naming each wrong parameter; NotFoundError; DeniedError; ConflictError
    where the task is off or its policy refuses.
    """
    form = Form(document)
    task_id = form.matching("taskId", ULID, "expected a task's id")
    overrides = form.mapping("parameterMap", {})
    form.finish()
    task = find_task(store, identity, task_id, EXECUTOR)
    values = complete(task.parameters, overrides)
    wanted = Start(task_id=task_id, user_id=identity.user_id, made=made)
    return _request(store, identity, task, values, wanted, seal)


def _request(
    store: Store, identity: Identity, task: Task, values: dict[str, Any], wanted: Start, seal: Seal
) -> Execution:
    if not task.is_enabled:
        raise ConflictError(f"the task {task.name!r} is off (enabledFg)")
    hidden = secret_names(task.parameters)
    secret = {name: content for name, content in values.items() if name in hidden}
    shown = {name: content for name, content in values.items() if name not in hidden}
    with store.writing():
        execution = request_execution(
            store,
            Start(
                task_id=wanted.task_id,
                trigger=wanted.trigger,
                user_id=wanted.user_id,
                parameter_map=shown | dict.fromkeys(secret, MASKED),
                sealed=seal(secret) if secret else None,
                retry_of=wanted.retry_of,
                parent_id=wanted.parent_id,
                rights=rights_to_keep(identity),
                made=wanted.made,
            ),
        )
        act = ("start", "execution", execution.execution_id)
        audit.record(store, identity, act, project_id=task.project_id, after={"taskId": task.task_id})
    return execution


def find(store: Store, identity: Identity, execution_id: str, least: str = VIEWER) -> Execution:
    """An execution in a project that one has that role in. Raises: NotFoundError; DeniedError."""
    missing = f"no execution {ascii(execution_id)[1:-1][:40]}"
    if not ULID.fullmatch(execution_id):
        raise NotFoundError(missing)
    execution = find_execution(store, execution_id)
    identity.require_role(execution.project_id, least, what=missing)
    return execution


def listed(
    store: Store, identity: Identity, wanted: ExecutionFilter, *, limit: int, before_id: str | None
) -> tuple[Execution, ...]:
    """Those of the projects one sees, or of those that are asked for, newest first. Raises: NotFoundError."""
    if wanted.task_id is not None:
        find_task(store, identity, wanted.task_id)
    for project_id in wanted.project_ids or ():
        find_project(store, identity, project_id)
    visible = wanted.project_ids or identity.visible
    if visible is not None and not visible:
        return ()
    wanted = ExecutionFilter(
        project_ids=visible, task_id=wanted.task_id, statuses=wanted.statuses, from_ns=wanted.from_ns,
        to_ns=wanted.to_ns,
    )  # fmt: skip
    return list_executions(store, wanted, limit=limit, before_id=before_id)


def find_for_log(store: Store, identity: Identity, execution_id: str) -> Execution:
    """An execution whose log one may read. Raises: NotFoundError; DeniedError."""
    return find(store, identity, execution_id, ADVANCED_EXECUTOR)


def abort(store: Store, identity: Identity, execution_id: str) -> Execution:
    """Have it end; one that is over is no error. Raises: NotFoundError; DeniedError."""
    execution = find(store, identity, execution_id, EXECUTOR)
    if execution.status in OPEN_STATUSES:
        with store.writing():
            carriage.abort(store, execution_id)
            act = ("abort", "execution", execution_id)
            audit.record(store, identity, act, project_id=execution.project_id)
    return find_execution(store, execution_id)


def retry(store: Store, identity: Identity, execution_id: str, seal: Seal) -> Execution:
    """Execute it once more with the parameters it had.

    Raises: NotFoundError; DeniedError; ConflictError while it is under way, where it had a SECRET, which is
    not kept, or where the policy refuses; InvalidFieldsError where its task wants other parameters by now.
    """
    before = find(store, identity, execution_id, EXECUTOR)
    if before.status in OPEN_STATUSES:
        raise ConflictError(
            f"execution {execution_id} is {before.status}; only one that is over is tried again"
        )
    task = find_task(store, identity, before.task_id, EXECUTOR)
    if secret_names(task.parameters) & before.parameter_map.keys():
        raise ConflictError("its SECRET parameters were not kept: start the task with them instead")
    values = complete(task.parameters, before.parameter_map)
    wanted = Start(task_id=before.task_id, trigger="RETRY", user_id=identity.user_id, retry_of=execution_id)
    return _request(store, identity, task, values, wanted, seal)


def remove(store: Store, identity: Identity, execution_id: str, files: ExecutionFiles) -> None:
    """Delete one that is over, with its log. Raises: NotFoundError; DeniedError; ConflictError."""
    execution = find(store, identity, execution_id, MANAGER)
    if execution.status in OPEN_STATUSES:
        raise ConflictError(f"execution {execution_id} is {execution.status}: abort it first")
    with store.writing():
        if execution.parent_id is not None and is_under_way(store, execution.parent_id):
            raise ConflictError(f"execution {execution.parent_id} has it as a step and is under way")
        store.execute("DELETE FROM executions WHERE execution_id = ?", (execution_id,))
        act = ("remove", "execution", execution_id)
        audit.record(store, identity, act, project_id=execution.project_id)
    remove_log(files.log_path(execution_id))


def encode_execution(
    store: Store, execution: Execution, *, max_running: int, has_steps: bool = True
) -> dict[str, Any]:
    """Its form on the wire; `scheduledTs`, `reason`, `waitsFor` and the ids of others where it has them.

    `has_steps`: with the steps of a workflow, which may be many.
    """
    document: dict[str, Any] = {
        "executionId": execution.execution_id,
        "creationTs": execution.created_ns,
        "updateTs": execution.updated_ns,
        "taskId": execution.task_id,
        "projectId": execution.project_id,
        "userId": execution.user_id,
        "trigger": execution.trigger,
        "status": execution.status,
        "parameterMap": execution.parameter_map,
        "startTs": execution.start_ns,
        "endTs": execution.end_ns,
        "exitCode": execution.exit_code,
        "attempt": execution.attempt,
        "runs": list(execution.runs),
    }
    for key, content in (
        ("scheduledTs", execution.scheduled_ns),
        ("reason", execution.reason),
        ("retryOf", execution.retry_of),
        ("parentExecutionId", execution.parent_id),
        ("waitsFor", waits_for(store, execution, max_running=max_running)),
        ("steps", encode_steps(store, execution) if has_steps else None),
    ):
        if content is not None:
            document[key] = content
    return document


def check_status(status: str) -> bool:
    """Whether it is a word for a status."""
    return status in STATUSES


def is_final(execution: Execution) -> bool:
    """Whether nothing more comes of it."""
    return execution.status not in OPEN_STATUSES or execution.status == SKIPPED
