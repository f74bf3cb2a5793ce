"""`/api/v1/projects/{projectId}/constants` and `…/secrets`."""

from __future__ import annotations

from ctrl_exec.api.inquiry import query_of
from ctrl_exec.api.v1.asking import list_response, page_of
from ctrl_exec.common.routing import Response, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    from ctrl_exec.api.v1.asking import Asking
    from ctrl_exec.tasks.models import Constant, Secret

    T = TypeVar("T", Constant, Secret)

KEYS = ("name", "value")
LIST_KEYS = ("q", "limit", "cursor")


def index(asking: Asking) -> Response:
    """`GET …/constants`: all of them."""
    from ctrl_exec.tasks.constants import encode_constant, list_constants

    found = list_constants(asking.store, asking.identity, asking.parameters["projectId"])
    return _page(asking, found, encode_constant)


def _page(asking: Asking, known: Sequence[T], encode: Callable[[T], dict[str, Any]]) -> Response:
    """A page of a project's few named values, by name; the cursor is the last one's name."""
    query = query_of(asking.request, LIST_KEYS)
    limit, cursor = page_of(query)
    having = query.get("q", "").upper()
    found = [each for each in known if each.name > cursor and having in each.name]
    return list_response(found, limit, encode, lambda each: each.name)


def create(asking: Asking) -> Response:
    """`POST …/constants`."""
    from ctrl_exec.tasks.constants import decode_constant, encode_constant, save_constant

    project_id = asking.parameters["projectId"]
    asking.identity.require_role(project_id, "MANAGER")
    draft = decode_constant(asking.document)
    constant = save_constant(asking.store, asking.identity, project_id, draft)
    location = ("Location", f"/api/v1/projects/{project_id}/constants/{constant.constant_id}")
    return json_response(201, encode_constant(constant), (location,))


def amend(asking: Asking) -> Response:
    """`PATCH …/constants/{constantId}`."""
    from ctrl_exec.tasks.constants import decode_constant, encode_constant, find_constant, save_constant

    project_id = asking.parameters["projectId"]
    asking.identity.require_role(project_id, "MANAGER")
    current = find_constant(asking.store, asking.identity, project_id, asking.parameters["constantId"])
    draft = decode_constant(asking.document, current)
    return json_response(
        200, encode_constant(save_constant(asking.store, asking.identity, project_id, draft))
    )


def remove(asking: Asking) -> Response:
    """`DELETE …/constants/{constantId}`."""
    from ctrl_exec.tasks.constants import remove_constant

    parameters = asking.parameters
    remove_constant(asking.store, asking.identity, parameters["projectId"], parameters["constantId"])
    return Response(204)


def index_secrets(asking: Asking) -> Response:
    """`GET …/secrets`: their names."""
    from ctrl_exec.tasks.project_secrets import encode_secret, list_secrets

    found = list_secrets(asking.store, asking.identity, asking.parameters["projectId"])
    return _page(asking, found, encode_secret)


def create_secret(asking: Asking) -> Response:
    """`POST …/secrets`."""
    from ctrl_exec.common.value import replace
    from ctrl_exec.tasks.project_secrets import decode_secret, encode_secret, save_secret

    project_id = asking.parameters["projectId"]
    asking.identity.require_role(project_id, "MANAGER")
    draft, content = decode_secret(asking.document)
    draft = replace(draft, project_id=project_id)
    secret = save_secret(asking.store, asking.identity, asking.sealer, draft, content)
    location = ("Location", f"/api/v1/projects/{project_id}/secrets/{secret.secret_id}")
    return json_response(201, encode_secret(secret), (location,))


def replace_secret(asking: Asking) -> Response:
    """`PATCH …/secrets/{secretId}`: another value, perhaps another name."""
    from ctrl_exec.tasks.project_secrets import decode_secret, encode_secret, find_secret, save_secret

    project_id = asking.parameters["projectId"]
    current = find_secret(asking.store, asking.identity, project_id, asking.parameters["secretId"])
    draft, content = decode_secret(asking.document, current)
    secret = save_secret(asking.store, asking.identity, asking.sealer, draft, content)
    return json_response(200, encode_secret(secret))


def remove_secret(asking: Asking) -> Response:
    """`DELETE …/secrets/{secretId}`."""
    from ctrl_exec.tasks.project_secrets import remove_secret as forget

    parameters = asking.parameters
    forget(asking.store, asking.identity, parameters["projectId"], parameters["secretId"])
    return Response(204)
