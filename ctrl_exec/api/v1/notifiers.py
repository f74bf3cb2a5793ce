"""`/api/v1/notifiers`."""

from __future__ import annotations

from ctrl_exec.api.inquiry import query_of
from ctrl_exec.api.v1.asking import list_response, page_of
from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.common.routing import Response, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.api.v1.asking import Asking
    from ctrl_exec.tasks.models import Notifier

KEYS = ("projectId", "name", "kind", "settings", "secret", "enabledFg")
LIST_KEYS = ("projectId", "kind", "q", "limit", "cursor")


def create(asking: Asking) -> Response:
    """`POST /api/v1/notifiers`."""
    from ctrl_exec.tasks.notification.notifiers import decode_notifier, save_notifier

    draft, secret = decode_notifier(asking.document)
    found = save_notifier(asking.store, asking.identity, asking.sealer, draft, secret)
    location = ("Location", f"/api/v1/notifiers/{found[0].notifier_id}")
    return json_response(201, _encoded(found), (location,))


def index(asking: Asking) -> Response:
    """`GET /api/v1/notifiers`."""
    from ctrl_exec.tasks.models import NOTIFIER_KINDS
    from ctrl_exec.tasks.notification.notifiers import list_notifiers

    query = query_of(asking.request, LIST_KEYS)
    limit, cursor = page_of(query)
    if query.get("kind", NOTIFIER_KINDS[0]) not in NOTIFIER_KINDS:
        raise InvalidInputError("kind: expected one of " + ", ".join(NOTIFIER_KINDS), field="kind")
    names = {"projectId": "project_id", "kind": "kind", "q": "having"}
    wanted = {inner: query[name] for name, inner in names.items() if name in query}
    found = list_notifiers(asking.store, asking.identity, wanted, limit=limit + 1, after_id=cursor)
    return list_response(found, limit, _encoded, lambda each: each[0].notifier_id)


def show(asking: Asking) -> Response:
    """`GET /api/v1/notifiers/{notifierId}`."""
    from ctrl_exec.tasks.notification.notifiers import find_notifier

    found = find_notifier(asking.store, asking.identity, asking.parameters["notifierId"])
    return json_response(200, _encoded(found))


def amend(asking: Asking) -> Response:
    """`PATCH /api/v1/notifiers/{notifierId}`."""
    from ctrl_exec.tasks.notification.notifiers import decode_notifier, find_notifier, save_notifier

    current, _ = find_notifier(asking.store, asking.identity, asking.parameters["notifierId"])
    asking.identity.require_role(current.project_id, "MANAGER")
    draft, secret = decode_notifier(asking.document, current)
    found = save_notifier(asking.store, asking.identity, asking.sealer, draft, secret)
    return json_response(200, _encoded(found))


def remove(asking: Asking) -> Response:
    """`DELETE /api/v1/notifiers/{notifierId}`."""
    from ctrl_exec.tasks.notification.notifiers import remove_notifier

    remove_notifier(asking.store, asking.identity, asking.parameters["notifierId"])
    return Response(204)


def test(asking: Asking) -> Response:
    """`POST /api/v1/notifiers/{notifierId}/test`: one attempt, made now."""
    from ctrl_exec.tasks.notification.notifiers import find_notifier
    from ctrl_exec.tasks.notification.trial import send_test

    notifier, _ = find_notifier(asking.store, asking.identity, asking.parameters["notifierId"])
    asking.identity.require_role(notifier.project_id, "MANAGER")
    fault = send_test(asking.dispatcher.config, asking.store, asking.sealer, notifier)
    return json_response(200, {"sentFg": fault is None, "error": fault})


def _encoded(found: tuple[Notifier, bool]) -> dict[str, Any]:
    from ctrl_exec.tasks.notification.notifiers import encode_notifier

    notifier, has_secret = found
    return encode_notifier(notifier, has_secret=has_secret)
