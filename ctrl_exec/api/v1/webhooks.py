"""`/api/v1/webhooks`, and `POST /hooks/{webhookId}`, where their senders deliver."""

from __future__ import annotations

from ctrl_exec.api import access
from ctrl_exec.api.inquiry import query_of
from ctrl_exec.api.v1.asking import check_ids, list_response, page_of
from ctrl_exec.common.routing import Response, json_response
from ctrl_exec.services.authority import Caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.api.v1.asking import Asking, Visit

KEYS = ("taskId", "name", "scheme", "secret", "events", "branches", "parameterMapping", "enabledFg")
LIST_KEYS = ("projectId", "taskId", "q", "limit", "cursor")


def create(asking: Asking) -> Response:
    """`POST /api/v1/webhooks`."""
    from ctrl_exec.tasks.inbound.webhooks import decode_webhook, encode_webhook, save_webhook

    draft, secret = decode_webhook(asking.document)
    webhook = save_webhook(asking.store, asking.identity, asking.sealer, draft, secret)
    location = ("Location", f"/api/v1/webhooks/{webhook.webhook_id}")
    return json_response(201, encode_webhook(webhook), (location,))


def index(asking: Asking) -> Response:
    """`GET /api/v1/webhooks`."""
    from ctrl_exec.tasks.inbound.webhooks import encode_webhook, list_webhooks

    query = query_of(asking.request, LIST_KEYS)
    limit, cursor = page_of(query)
    check_ids(query, "taskId")
    names = {"projectId": "project_id", "taskId": "task_id", "q": "having"}
    wanted = {inner: query[name] for name, inner in names.items() if name in query}
    found = list_webhooks(asking.store, asking.identity, wanted, limit=limit + 1, after_id=cursor)
    return list_response(found, limit, encode_webhook, lambda webhook: webhook.webhook_id)


def show(asking: Asking) -> Response:
    """`GET /api/v1/webhooks/{webhookId}`."""
    from ctrl_exec.tasks.inbound.webhooks import encode_webhook, find_webhook

    found = find_webhook(asking.store, asking.identity, asking.parameters["webhookId"])
    return json_response(200, encode_webhook(found))


def amend(asking: Asking) -> Response:
    """`PATCH /api/v1/webhooks/{webhookId}`."""
    from ctrl_exec.tasks.inbound.webhooks import decode_webhook, encode_webhook, find_webhook, save_webhook

    current = find_webhook(asking.store, asking.identity, asking.parameters["webhookId"])
    draft, secret = decode_webhook(asking.document, current)
    webhook = save_webhook(asking.store, asking.identity, asking.sealer, draft, secret)
    return json_response(200, encode_webhook(webhook))


def remove(asking: Asking) -> Response:
    """`DELETE /api/v1/webhooks/{webhookId}`."""
    from ctrl_exec.tasks.inbound.webhooks import remove_webhook

    remove_webhook(asking.store, asking.identity, asking.parameters["webhookId"])
    return Response(204)


def receive(visit: Visit) -> Response:
    """`POST /hooks/{webhookId}`: 202 with the execution, 200 where the delivery is not meant for it."""
    from ctrl_exec.tasks.inbound.deliveries import Delivery, authenticate, deliver

    config = visit.dispatcher.config
    delivery = Delivery(
        webhook_id=visit.parameters["webhookId"],
        headers=dict(reversed(visit.request.headers)),
        body=visit.request.body,
        source_ip=access.source_address(visit.request, config),
    )
    webhook, owner = authenticate(visit.store, visit.sealer, delivery)
    authority = visit.dispatcher.authority
    if authority.has_hook:
        caller = Caller(username=owner.username, source_ip=delivery.source_ip, via="webhook", auth="token")
        authority.check(caller, "task", reqid=visit.request.reqid)
    outcome = deliver(visit.store, webhook, owner, delivery)
    if outcome.execution_id is None:
        return json_response(200, {"executionId": None, "reason": outcome.reason})
    return json_response(202, {"executionId": outcome.execution_id, "repeatedFg": outcome.is_repeated})
