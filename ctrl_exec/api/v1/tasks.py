"""`/api/v1/tasks`: the seed's endpoint, and what belongs to it."""

from __future__ import annotations

from ctrl_exec.api.inquiry import query_of
from ctrl_exec.api.v1.asking import etag, list_response, page_of, wanted_versions
from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.common.routing import Response, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.api.v1.asking import Asking
    from ctrl_exec.tasks.models import Task

TASK_KEYS = (
    "projectId", "name", "description", "parameters", "multipleExecutionPolicy", "maxConcurrency",
    "taskNotifierMap", "enabledFg", "scheduledFg", "cronExpression", "cronTimezone", "schedules", "calendar",
    "missedRunPolicy", "startDeadline", "retry", "timeout", "timeoutDurationUnit", "executionRetentionPeriod",
    "taskType", "localCommandTask", "agentScriptTask", "workflowTask", "httpRequestTask",
)  # fmt: skip
OWN_KEYS = ("taskId", "creationTs", "updateTs", "userId")
LIST_KEYS = ("projectId", "taskType", "q", "limit", "cursor")


def create(asking: Asking) -> Response:
    """`POST /api/v1/tasks`."""
    from ctrl_exec.tasks.definitions import create_task

    task = create_task(asking.store, asking.identity, asking.document)
    return _response(201, task, (("Location", f"/api/v1/tasks/{task.task_id}"),))


def index(asking: Asking) -> Response:
    """`GET /api/v1/tasks`."""
    from ctrl_exec.tasks.codec import encode_task
    from ctrl_exec.tasks.definitions import list_tasks
    from ctrl_exec.tasks.models import TASK_TYPES

    query = query_of(asking.request, LIST_KEYS)
    limit, cursor = page_of(query)
    names = {"projectId": "project_id", "taskType": "task_type", "q": "having"}
    wanted = {inner: query[name] for name, inner in names.items() if name in query}
    if wanted.get("task_type", TASK_TYPES[0]) not in TASK_TYPES:
        raise InvalidInputError("taskType: expected one of " + ", ".join(TASK_TYPES), field="taskType")
    if "project_id" in wanted:
        asking.identity.require_role(wanted["project_id"])
    found = list_tasks(asking.store, asking.identity, wanted, limit=limit + 1, after_id=cursor)
    return list_response(found, limit, encode_task, lambda task: task.task_id)


def show(asking: Asking) -> Response:
    """`GET /api/v1/tasks/{taskId}`."""
    from ctrl_exec.tasks.definitions import find_task

    return _response(200, find_task(asking.store, asking.identity, asking.parameters["taskId"]))


def replace(asking: Asking) -> Response:
    """`PUT /api/v1/tasks/{taskId}`: the whole task; what is left out has its default."""
    return _change(asking, lambda _task: asking.document)


def amend(asking: Asking) -> Response:
    """`PATCH /api/v1/tasks/{taskId}`: a merge patch (RFC 7396)."""
    from ctrl_exec.tasks.codec import patched

    return _change(asking, lambda task: patched(task, asking.document))


def _change(asking: Asking, change: Any) -> Response:
    from ctrl_exec.tasks.definitions import change_task

    versions = wanted_versions(asking.request)
    task = change_task(asking.store, asking.identity, asking.parameters["taskId"], change, versions=versions)
    return _response(200, task)


def remove(asking: Asking) -> Response:
    """`DELETE /api/v1/tasks/{taskId}`."""
    from ctrl_exec.tasks.definitions import remove_task

    versions = wanted_versions(asking.request)
    remove_task(asking.store, asking.identity, asking.parameters["taskId"], versions=versions)
    return Response(204)


def _response(status: int, task: Task, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    from ctrl_exec.tasks.codec import encode_task

    return json_response(status, encode_task(task), (*headers, etag(task.version)))
