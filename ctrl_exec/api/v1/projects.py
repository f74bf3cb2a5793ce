"""`/api/v1/projects`, and who has which role in one."""

from __future__ import annotations

from ctrl_exec.api.inquiry import query_of
from ctrl_exec.api.v1.asking import list_response, page_of
from ctrl_exec.common.routing import Response, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.api.v1.asking import Asking

PROJECT_KEYS = ("name", "description", "timeout", "timeoutDurationUnit", "executionRetentionPeriod")
OWN_KEYS = ("projectId", "creationTs", "updateTs")
LIST_KEYS = ("q", "limit", "cursor")
ROLES_KEYS = ("items",)


def create(asking: Asking) -> Response:
    """`POST /api/v1/projects`."""
    from ctrl_exec.tasks.projects import add_project, decode_project, encode_project

    project = add_project(asking.store, asking.identity, decode_project(asking.document))
    location = ("Location", f"/api/v1/projects/{project.project_id}")
    return json_response(201, encode_project(project), (location,))


def index(asking: Asking) -> Response:
    """`GET /api/v1/projects`."""
    from ctrl_exec.tasks.projects import encode_project, list_projects

    query = query_of(asking.request, LIST_KEYS)
    limit, cursor = page_of(query)
    having = query.get("q", "")
    found = list_projects(asking.store, asking.identity, limit=limit + 1, after_id=cursor, having=having)
    return list_response(found, limit, encode_project, lambda project: project.project_id)


def show(asking: Asking) -> Response:
    """`GET /api/v1/projects/{projectId}`."""
    from ctrl_exec.tasks.projects import encode_project, find_project

    found = find_project(asking.store, asking.identity, asking.parameters["projectId"])
    return json_response(200, encode_project(found))


def replace(asking: Asking) -> Response:
    """`PUT /api/v1/projects/{projectId}`: the whole project."""
    return _change(asking, asking.document)


def amend(asking: Asking) -> Response:
    """`PATCH /api/v1/projects/{projectId}`: a merge patch."""
    from ctrl_exec.tasks.codec import merged
    from ctrl_exec.tasks.projects import encode_project, find_project

    current = find_project(asking.store, asking.identity, asking.parameters["projectId"])
    return _change(asking, merged(encode_project(current), asking.document))


def _change(asking: Asking, document: dict[str, Any]) -> Response:
    from ctrl_exec.tasks.projects import change_project, decode_project, encode_project, find_project

    current = find_project(asking.store, asking.identity, asking.parameters["projectId"])
    asking.identity.require_role(current.project_id, "MANAGER")
    project = change_project(asking.store, asking.identity, decode_project(document, current))
    return json_response(200, encode_project(project))


def remove(asking: Asking) -> Response:
    """`DELETE /api/v1/projects/{projectId}` with all that belongs to it."""
    from ctrl_exec.tasks.projects import remove_project

    remove_project(asking.store, asking.identity, asking.parameters["projectId"])
    return Response(204)


def show_roles(asking: Asking) -> Response:
    """`GET /api/v1/projects/{projectId}/roles`."""
    from ctrl_exec.tasks.projects import encode_role, list_roles

    found = list_roles(asking.store, asking.identity, asking.parameters["projectId"])
    return json_response(200, {"items": [encode_role(each) for each in found]})


def set_roles(asking: Asking) -> Response:
    """`PUT /api/v1/projects/{projectId}/roles`: all of them."""
    from ctrl_exec.tasks import projects

    project_id = asking.parameters["projectId"]
    projects.find_project(asking.store, asking.identity, project_id)
    roles = projects.decode_roles(asking.document, project_id)
    projects.set_roles(asking.store, asking.identity, project_id, roles)
    return show_roles(asking)
