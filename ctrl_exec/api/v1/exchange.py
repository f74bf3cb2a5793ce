"""`GET /api/v1/projects/{projectId}/export`, `POST /api/v1/imports`."""

from __future__ import annotations

from ctrl_exec.common.routing import Response, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.api.v1.asking import Asking

KEYS = ("version", "project", "constants", "secrets", "notifiers", "tasks", "webhooks")


def export(asking: Asking) -> Response:
    """The project as one document, without the values of secrets."""
    from ctrl_exec.tasks.exchange import export_project

    return json_response(200, export_project(asking.store, asking.identity, asking.parameters["projectId"]))


def take_in(asking: Asking) -> Response:
    """A new project from such a document; says which secrets have to be set again."""
    from ctrl_exec.tasks.exchange import import_project
    from ctrl_exec.tasks.projects import encode_project

    project, to_set = import_project(asking.store, asking.identity, asking.sealer, asking.document)
    location = ("Location", f"/api/v1/projects/{project.project_id}")
    return json_response(201, {"project": encode_project(project), "secretsToSet": to_set}, (location,))
