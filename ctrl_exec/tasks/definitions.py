"""Tasks as objects of projects: created, changed, found, listed, removed, always with somebody's rights.

Owns their rows and who may do what: managers edit, and only an administrator makes or changes what runs
on the dispatcher itself. What a task means is the codec's and the checks'.
"""

from __future__ import annotations

import json

from ctrl_exec.common.errors import ConflictError, InvalidInputError, NotFoundError, PreconditionError
from ctrl_exec.common.value import replace
from ctrl_exec.tasks import audit
from ctrl_exec.tasks.checks import check_task
from ctrl_exec.tasks.clock.timers import set_timers
from ctrl_exec.tasks.codec import decode_task, encode_definition, encode_task
from ctrl_exec.tasks.models import EXECUTOR, LOCAL_COMMAND, OPEN_STATUSES, VIEWER, Task
from ctrl_exec.tasks.people.rights import rights_to_leave
from ctrl_exec.tasks.projects import narrowed, visible_condition
from ctrl_exec.tasks.store import packed
from ctrl_exec.tasks.ulid import new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from typing import Any

    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.store import Store

_COLUMNS = "task_id, user_id, created_ns, updated_ns, version, rights, definition"


def create_task(store: Store, identity: Identity, document: dict[str, Any]) -> Task:
    """A new task as a document describes it.

    Raises: InvalidFieldsError; NotFoundError without the project; DeniedError; ConflictError if the
    name is taken in the project.
    """
    draft = decode_task(document)
    _require_rights(identity, draft)
    if not identity.user_id:
        raise InvalidInputError(f"there is no user {identity.username!r} to own the task", field="userId")
    now_ns = store.clock_ns()
    task = replace(
        draft,
        task_id=new_ulid(now_ns),
        user_id=identity.user_id,
        created_ns=now_ns,
        updated_ns=now_ns,
        rights=rights_to_leave(identity),
    )
    with store.writing():
        _require_project(store, task.project_id)
        check_task(store, task, _finder(store, identity))
        _refuse_taken(store, task)
        store.insert("tasks", _as_row(task))
        set_timers(store, task)
        act = ("create", "task", task.task_id)
        audit.record(store, identity, act, project_id=task.project_id, after=encode_task(task))
    return task


def insert_task(store: Store, identity: Identity, task: Task) -> None:
    """Add a task that came with its id; whoever adds it checks it, within one transaction.

    Raises: DeniedError; ConflictError if the name is taken in the project.
    """
    _require_rights(identity, task)
    _refuse_taken(store, task)
    store.insert("tasks", _as_row(task))
    set_timers(store, task)


def finder_of(store: Store, identity: Identity) -> Callable[[str], Task | None]:
    """What gives the tasks that somebody may use as steps. Raises: DeniedError for one they may only see."""
    return _finder(store, identity)


def change_task(
    store: Store,
    identity: Identity,
    task_id: str,
    change: Callable[[Task], dict[str, Any]],
    *,
    versions: tuple[int, ...] | None = None,
) -> Task:
    """Save a changed task; `change` gives the whole new document from the current task.

    With `versions` only if the current one is among them.

    Raises: as `create_task`; PreconditionError.
    """
    with store.writing():
        before = find_task(store, identity, task_id)
        _require_rights(identity, before)
        _require_version(before, versions)
        draft = decode_task(change(before), before)
        _require_rights(identity, draft)
        # its owner's rights are narrowed and widened by nobody else
        rights = rights_to_leave(identity) if identity.user_id == before.user_id else before.rights
        task = replace(draft, updated_ns=store.clock_ns(), version=before.version + 1, rights=rights)
        if task.project_id != before.project_id:
            raise InvalidInputError(
                "projectId: a task stays in its project; export and import it", field="projectId"
            )
        check_task(store, task, _finder(store, identity))
        _refuse_taken(store, task)
        row = _as_row(task)
        sets = ", ".join(f"{name} = ?" for name in row)
        store.execute(f"UPDATE tasks SET {sets} WHERE task_id = ?", (*row.values(), task_id))
        set_timers(store, task)
        documents = {"before": encode_task(before), "after": encode_task(task)}
        act = ("update", "task", task_id)
        audit.record(store, identity, act, project_id=task.project_id, **documents)
    return task


def remove_task(
    store: Store, identity: Identity, task_id: str, *, versions: tuple[int, ...] | None = None
) -> None:
    """Forget a task and the records of its executions.

    Raises: NotFoundError; DeniedError; PreconditionError; ConflictError while one is under way, or a
    workflow has it as a step.
    """
    from ctrl_exec.tasks.execution.forgetting import forget_history

    _require_removable(store, identity, task_id, versions)
    forget_history(store, "task", task_id)
    with store.writing():
        task = _require_removable(store, identity, task_id, versions)
        store.execute("DELETE FROM tasks WHERE task_id = ?", (task_id,))
        act = ("delete", "task", task_id)
        audit.record(store, identity, act, project_id=task.project_id, before=encode_task(task))
        store.touch()


def _require_removable(
    store: Store, identity: Identity, task_id: str, versions: tuple[int, ...] | None
) -> Task:
    task = find_task(store, identity, task_id)
    _require_rights(identity, task)
    _require_version(task, versions)
    marks = ", ".join("?" * len(OPEN_STATUSES))
    sql = f"SELECT execution_id FROM executions WHERE task_id = ? AND status IN ({marks}) LIMIT 1"
    busy = store.row(sql, (task_id, *OPEN_STATUSES))
    if busy is not None:
        raise ConflictError(f"execution {busy['execution_id']} of this task is under way")
    # by its steps: what else a definition says is anybody's to write
    sql = """
    SELECT 1 FROM tasks, json_each(definition, '$.workflowTask.steps') AS step
    WHERE task_type = 'WORKFLOW' AND json_extract(step.value, '$.taskId') = ? LIMIT 1
    """
    if store.row(sql, (task_id,)) is not None:
        raise ConflictError("a workflow has this task as a step")
    return task


def _require_rights(identity: Identity, task: Task) -> None:
    identity.require_role(task.project_id, "MANAGER")
    if task.task_type == LOCAL_COMMAND:
        identity.require_administrator()


def _require_version(task: Task, versions: tuple[int, ...] | None) -> None:
    if versions is not None and task.version not in versions:
        raise PreconditionError(f"the task is at version {task.version}: it was changed meanwhile")


def _require_project(store: Store, project_id: str) -> None:
    if store.row("SELECT 1 FROM projects WHERE project_id = ?", (project_id,)) is None:
        raise NotFoundError(f"no project {project_id[:80]}")


def _refuse_taken(store: Store, task: Task) -> None:
    sql = "SELECT 1 FROM tasks WHERE project_id = ? AND name = ? AND task_id != ?"
    if store.row(sql, (task.project_id, task.name, task.task_id)) is not None:
        raise ConflictError(f"there is a task {task.name!r} in this project already")


def find_task(store: Store, identity: Identity, task_id: str, least: str = VIEWER) -> Task:
    """Raises: NotFoundError, also where one has no role in its project; DeniedError below `least`."""
    task = load_task(store, task_id)
    if task is None:
        raise NotFoundError(f"no task {task_id[:40]}")
    identity.require_role(task.project_id, least, what=f"no task {task_id[:40]}")
    return task


def find_named(
    store: Store, identity: Identity, name: str, project_id: str | None = None
) -> tuple[Task, ...]:
    """The tasks of that id or name that one may see."""
    condition, values = visible_condition(identity)
    sql = f"SELECT {_COLUMNS} FROM tasks WHERE {condition} AND (task_id = ? OR name = ?)"
    found = tuple(_of_row(row) for row in store.rows(sql, (*values, name, name)))
    return tuple(task for task in found if project_id in (None, task.project_id))


def load_task(store: Store, task_id: str) -> Task | None:
    """The task, whoever asks; for the clock and those who carry executions."""
    row = store.row(f"SELECT {_COLUMNS} FROM tasks WHERE task_id = ?", (task_id,))
    return None if row is None else _of_row(row)


def _finder(store: Store, identity: Identity) -> Callable[[str], Task | None]:
    def find(task_id: str) -> Task | None:
        try:
            # a workflow may be executed with more rights than its author's: it holds what they may run
            return find_task(store, identity, task_id, EXECUTOR)
        except NotFoundError:
            return None

    return find


def list_tasks(
    store: Store, identity: Identity, wanted: dict[str, str], *, limit: int = 50, after_id: str = ""
) -> tuple[Task, ...]:
    """At most `limit` of the tasks one may see, oldest first.

    `wanted`: `project_id`, `task_type`, and `having`, a part of the name.
    """
    condition, values = visible_condition(identity)
    more, filters = narrowed(wanted, ("project_id", "task_type"))
    sql = (
        f"SELECT {_COLUMNS} FROM tasks WHERE {condition} AND {more} AND task_id > ? ORDER BY task_id LIMIT ?"
    )
    return tuple(_of_row(row) for row in store.rows(sql, (*values, *filters, after_id, limit)))


def _as_row(task: Task) -> dict[str, Any]:
    return {
        "task_id": task.task_id, "project_id": task.project_id, "name": task.name,
        "task_type": task.task_type, "user_id": task.user_id, "is_enabled": int(task.is_enabled),
        "policy": task.policy, "max_concurrency": task.max_concurrency, "version": task.version,
        "created_ns": task.created_ns, "updated_ns": task.updated_ns, "rights": task.rights,
        "definition": packed(encode_definition(task)),
    }  # fmt: skip


def _of_row(row: sqlite3.Row) -> Task:
    own = {name: row[name] for name in ("user_id", "created_ns", "updated_ns", "version", "rights")}
    return replace(decode_task(json.loads(row["definition"])), task_id=row["task_id"], **own)
