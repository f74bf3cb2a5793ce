"""What comes to an incoming webhook: whether it is genuine, whether it is meant, what it starts.

Owns the senders' schemes and the memory of deliveries. Knows no HTTP beyond the fields it is given.
Source: the webhook documentation of GitHub, GitLab and Gitea; the Standard Webhooks specification 1.0.
"""

from __future__ import annotations

import hmac

from ctrl_exec.common.errors import ConflictError, InvalidInputError, NotFoundError, UnauthorizedError
from ctrl_exec.common.messages import parse_object
from ctrl_exec.common.value import replace, value
from ctrl_exec.tasks import audit
from ctrl_exec.tasks.definitions import find_task
from ctrl_exec.tasks.execution.executions import Start, request_execution
from ctrl_exec.tasks.inbound.webhooks import load_secret, load_webhook, standard_key
from ctrl_exec.tasks.models import EXECUTOR
from ctrl_exec.tasks.parameters import complete, secret_names
from ctrl_exec.tasks.people.identity import user_identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ctrl_exec.tasks.models import Webhook
    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.sealing import Sealer
    from ctrl_exec.tasks.store import Store

# Standard Webhooks: a signature older or newer than this is a replay
_TOLERANCE_S = 300
_REMEMBERED_NS = 3 * 86400 * 10**9
_ID_LIMIT = 200
# what these sign says neither when it was sent nor under which id: the body itself is remembered
_BODY_ALONE = ("GITHUB", "GITEA")
_EVENT_FIELDS = {"GITHUB": "x-github-event", "GITLAB": "x-gitlab-event", "GITEA": "x-gitea-event"}
_ID_FIELDS = {
    "GITHUB": "x-github-delivery",
    "GITLAB": "x-gitlab-event-uuid",
    "GITEA": "x-gitea-delivery",
    "STANDARD": "webhook-id",
    "GENERIC": "idempotency-key",
}


@value
class Delivery:
    """One request to a webhook: the fields of its head by lower-case name, its body, where it came from."""

    webhook_id: str
    headers: Mapping[str, str]
    body: bytes
    source_ip: str = ""


@value
class Outcome:
    """What a delivery came to: an execution, or why there is none; `is_repeated` if it had come before."""

    execution_id: str | None = None
    reason: str = ""
    is_repeated: bool = False


def authenticate(store: Store, sealer: Sealer, delivery: Delivery) -> tuple[Webhook, Identity]:
    """The webhook of a genuine delivery and whose rights it has.

    Raises: NotFoundError; UnauthorizedError for one that does not prove to know the secret.
    """
    webhook = load_webhook(store, delivery.webhook_id)
    if webhook is None or not webhook.is_enabled:
        raise NotFoundError(f"no webhook {delivery.webhook_id[:40]}")
    secret = load_secret(store, sealer, webhook)
    if not secret or not _CHECKS[webhook.scheme](secret, delivery, store.clock_ns() // 10**9):
        raise UnauthorizedError(f"the delivery does not show the secret in the way of {webhook.scheme}")
    owner = user_identity(store, webhook.user_id, via="webhook")
    if owner is None:
        raise NotFoundError(f"no webhook {delivery.webhook_id[:40]}")
    return webhook, replace(owner, source_ip=delivery.source_ip)


def deliver(store: Store, webhook: Webhook, owner: Identity, delivery: Delivery) -> Outcome:
    """Start the task if the delivery is meant to, once for each delivery.

    Where a scheme signs the body alone, the same body is the same delivery, whatever its id.

    Raises: MessageError for a body that is no JSON object; InvalidFieldsError for a field that is no value
    of its parameter; NotFoundError or DeniedError where the owner may not start it; ConflictError.
    """
    document = parse_object(delivery.body) if delivery.body else {}
    event = _event_of(webhook, delivery, document)
    reason = _reason_to_ignore(webhook, event, document)
    if reason:
        _remember_body(store, webhook, delivery, event)
        return Outcome(reason=reason)
    delivery_id = delivery.headers.get(_ID_FIELDS[webhook.scheme], "")[:_ID_LIMIT]
    task = find_task(store, owner, webhook.task_id, EXECUTOR)
    if not task.is_enabled:
        raise ConflictError(f"the task {task.name!r} is off (enabledFg)")
    overrides = {
        name: found
        for name, path in webhook.mapping.items()
        if (found := field_at(document, path)) is not None
    }
    parameters = complete(task.parameters, overrides, "parameterMapping")
    if secret_names(task.parameters) & parameters.keys():
        raise InvalidInputError("a SECRET has no value here")
    with store.writing():
        now_ns = store.clock_ns()
        _forget(store, webhook, delivery_id, delivery)
        known = _known(store, webhook, delivery_id) or _known_by_body(store, webhook, delivery, event)
        if known is not None:
            return known
        start = Start(webhook.task_id, "WEBHOOK", owner.user_id, parameters, rights=webhook.rights)
        execution = request_execution(store, start)
        if delivery_id:
            made = {"webhook_id": webhook.webhook_id, "delivery": delivery_id, "at_ns": now_ns}
            store.insert("deliveries", made | {"execution_id": execution.execution_id})
        _remember_body(store, webhook, delivery, event, execution.execution_id)
        act = ("start", "execution", execution.execution_id)
        audit.record(
            store, owner, act, project_id=webhook.project_id,
            after={"taskId": webhook.task_id, "webhookId": webhook.webhook_id},
        )  # fmt: skip
    return Outcome(execution.execution_id)


def forget_old(store: Store, *, most: int) -> int:
    """Forget what came so long ago that it may come again, at most so many of a kind; gives how many.

    Raises: StorageError.
    """
    before_ns, count = store.clock_ns() - _REMEMBERED_NS, 0
    for table, key in (("deliveries", "delivery"), ("signed_bodies", "digest")):
        sql = f"""
        DELETE FROM {table} WHERE (webhook_id, {key}) IN (
          SELECT webhook_id, {key} FROM {table} WHERE at_ns < ? LIMIT ?)
        """
        count += store.execute(sql, (before_ns, most))
    return count


def _forget(store: Store, webhook: Webhook, delivery_id: str, delivery: Delivery) -> None:
    """Forget this very delivery where it came so long ago that it may come again; others are the purge's."""
    before_ns = store.clock_ns() - _REMEMBERED_NS
    for table, key, shown in (
        ("deliveries", "delivery", delivery_id),
        ("signed_bodies", "digest", _sha256(delivery.body)),
    ):
        sql = f"DELETE FROM {table} WHERE webhook_id = ? AND {key} = ? AND at_ns < ?"
        store.execute(sql, (webhook.webhook_id, shown, before_ns))


def _known(store: Store, webhook: Webhook, delivery_id: str) -> Outcome | None:
    sql = "SELECT execution_id FROM deliveries WHERE webhook_id = ? AND delivery = ?"
    row = store.row(sql, (webhook.webhook_id, delivery_id)) if delivery_id else None
    return None if row is None else Outcome(row["execution_id"], is_repeated=True)


def _known_by_body(store: Store, webhook: Webhook, delivery: Delivery, event: str) -> Outcome | None:
    """What the same signed body came to before; None if it is new.

    One that was left out as another event stays so: the event's name is not signed either.
    """
    if webhook.scheme not in _BODY_ALONE:
        return None
    sql = "SELECT event, execution_id FROM signed_bodies WHERE webhook_id = ? AND digest = ?"
    row = store.row(sql, (webhook.webhook_id, _sha256(delivery.body)))
    if row is None:
        return None
    if row["execution_id"] is not None:
        return Outcome(row["execution_id"], is_repeated=True)
    return (
        None
        if row["event"] == event[:_ID_LIMIT]
        else Outcome(reason=f"it came before, as {row['event'][:80]!r}")
    )


def _remember_body(
    store: Store, webhook: Webhook, delivery: Delivery, event: str, execution_id: str | None = None
) -> None:
    if webhook.scheme not in _BODY_ALONE:
        return
    sql = """
    INSERT INTO signed_bodies (webhook_id, digest, at_ns, event, execution_id) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET execution_id = excluded.execution_id WHERE excluded.execution_id IS NOT NULL
    """
    digest = _sha256(delivery.body)
    store.execute(sql, (webhook.webhook_id, digest, store.clock_ns(), event[:_ID_LIMIT], execution_id))


def _sha256(body: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(body).digest()


def _reason_to_ignore(webhook: Webhook, event: str, document: dict[str, Any]) -> str:
    if webhook.events and event not in webhook.events:
        return f"the event {event[:80]!r} is none of this webhook's"
    if not webhook.events and webhook.scheme == "GITHUB" and event == "ping":
        return "a ping"
    if webhook.branches:
        from fnmatch import fnmatchcase

        branch = _branch_of(document)
        if not any(fnmatchcase(branch, each) for each in webhook.branches):
            return f"the branch {branch[:80]!r} is none of this webhook's"
    return ""


def _event_of(webhook: Webhook, delivery: Delivery, document: dict[str, Any]) -> str:
    name = _EVENT_FIELDS.get(webhook.scheme)
    if name is not None:
        return delivery.headers.get(name, "")
    found = document.get("type", document.get("event", ""))
    return found if isinstance(found, str) else ""


def _branch_of(document: dict[str, Any]) -> str:
    for path in ("ref", "branch", "pull_request.head.ref", "object_attributes.source_branch"):
        found = field_at(document, path)
        if isinstance(found, str) and not found.startswith("refs/tags/"):
            return found.removeprefix("refs/heads/")
    return ""


def field_at(document: Any, path: str) -> Any:
    """The content at a dotted path through objects and arrays; None where there is none."""
    found = document
    for part in path.split("."):
        if isinstance(found, dict):
            found = found.get(part)
        elif isinstance(found, list) and part.isascii() and part.isdigit() and int(part[:9]) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def _check_generic(secret: str, delivery: Delivery, _now_s: int) -> bool:
    scheme, _, shown = delivery.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and _is_same(shown.strip(), secret)


def _check_github(secret: str, delivery: Delivery, _now_s: int) -> bool:
    shown = delivery.headers.get("x-hub-signature-256", "")
    return shown.startswith("sha256=") and _is_same(shown[7:], _digest(secret, delivery.body))


def _check_gitlab(secret: str, delivery: Delivery, _now_s: int) -> bool:
    return _is_same(delivery.headers.get("x-gitlab-token", ""), secret)


def _check_gitea(secret: str, delivery: Delivery, _now_s: int) -> bool:
    return _is_same(delivery.headers.get("x-gitea-signature", ""), _digest(secret, delivery.body))


def _check_standard(secret: str, delivery: Delivery, now_s: int) -> bool:
    import base64

    message_id, stamp = delivery.headers.get("webhook-id", ""), delivery.headers.get("webhook-timestamp", "")
    key = standard_key(secret)
    if key is None or not message_id or not (stamp.isascii() and stamp.isdigit() and len(stamp) < 12):
        return False
    if abs(now_s - int(stamp)) > _TOLERANCE_S:
        return False
    signed = f"{message_id}.{stamp}.".encode() + delivery.body
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode("ascii")
    shown = delivery.headers.get("webhook-signature", "").split(" ")
    return any(_is_same(each, expected) for each in shown)


def _digest(secret: str, body: bytes) -> str:
    return hmac.digest(secret.encode("utf-8"), body, "sha256").hex()


def _is_same(shown: str, expected: str) -> bool:
    return hmac.compare_digest(shown.encode("utf-8", "replace"), expected.encode("utf-8"))


_CHECKS = {
    "GENERIC": _check_generic,
    "GITHUB": _check_github,
    "GITLAB": _check_gitlab,
    "GITEA": _check_gitea,
    "STANDARD": _check_standard,
}
