"""`/api/v1/notifiers`."""

from __future__ import annotations

from ctrl_exec.api.inquiry import query_of
from ctrl_exec.api.v1.asking import list_response, page_of
from ctrl_exec.common.routing import Response, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.api.v1.asking import Asking
    from ctrl_exec.tasks.models import Notifier

KEYS = ("projectId", "name", "kind", "settings", "secret", "enabledFg")
LIST_KEYS = ("projectId", "limit", "cursor")


def create(asking: Asking) -> Response:
    """`POST /api/v1/notifiers`."""
    from ctrl_exec.tasks.notifiers import decode_notifier, save_notifier

    draft, secret = decode_notifier(asking.document)
    found = save_notifier(asking.store, asking.identity, asking.sealer, draft, secret)
    location = ("Location", f"/api/v1/notifiers/{found[0].notifier_id}")
    return json_response(201, _encoded(found), (location,))


def index(asking: Asking) -> Response:
    """`GET /api/v1/notifiers`."""
    from ctrl_exec.tasks.notifiers import list_notifiers

    query = query_of(asking.request, LIST_KEYS)
    limit, cursor = page_of(query)
    found = list_notifiers(
        asking.store, asking.identity, query.get("projectId"), limit=limit + 1, after_id=cursor
    )
    return list_response(found, limit, _encoded, lambda each: each[0].notifier_id)


def show(asking: Asking) -> Response:
    """`GET /api/v1/notifiers/{notifierId}`."""
    from ctrl_exec.tasks.notifiers import find_notifier

    found = find_notifier(asking.store, asking.identity, asking.parameters["notifierId"])
    return json_response(200, _encoded(found))


def amend(asking: Asking) -> Response:
    """`PATCH /api/v1/notifiers/{notifierId}`."""
    from ctrl_exec.tasks.notifiers import decode_notifier, find_notifier, save_notifier

    current, _ = find_notifier(asking.store, asking.identity, asking.parameters["notifierId"])
    asking.identity.require_role(current.project_id, "MANAGER")
    draft, secret = decode_notifier(asking.document, current)
    found = save_notifier(asking.store, asking.identity, asking.sealer, draft, secret)
    return json_response(200, _encoded(found))


def remove(asking: Asking) -> Response:
    """`DELETE /api/v1/notifiers/{notifierId}`."""
    from ctrl_exec.tasks.notifiers import remove_notifier

    remove_notifier(asking.store, asking.identity, asking.parameters["notifierId"])
    return Response(204)


def test(asking: Asking) -> Response:
    """`POST /api/v1/notifiers/{notifierId}/test`: one attempt, made now."""
    from ctrl_exec.tasks.news import Notice
    from ctrl_exec.tasks.notifiers import find_notifier, load_notifier
    from ctrl_exec.tasks.outgoing import OutgoingError
    from ctrl_exec.tasks.posting import post, posting_of
    from ctrl_exec.tasks.ulid import new_ulid

    notifier, _ = find_notifier(asking.store, asking.identity, asking.parameters["notifierId"])
    asking.identity.require_role(notifier.project_id, "MANAGER")
    found = load_notifier(asking.store, asking.sealer, notifier.notifier_id)
    secret = "" if found is None else found[1]
    now_ns = asking.store.clock_ns()
    facts = {"event": "TEST", "projectId": notifier.project_id, "notifierId": notifier.notifier_id}
    notice = Notice(new_ulid(now_ns), notifier.notifier_id, "TEST", facts, now_ns)
    error = None
    try:
        post(posting_of(asking.dispatcher.config), notifier, secret, notice, now_s=now_ns // 10**9)
    except OutgoingError as failure:
        error = str(failure)
    return json_response(200, {"sentFg": error is None, "error": error})


def _encoded(found: tuple[Notifier, bool]) -> dict[str, Any]:
    from ctrl_exec.tasks.notifiers import encode_notifier

    notifier, has_secret = found
    return encode_notifier(notifier, has_secret=has_secret)
