"""Incoming webhooks as objects: which task one starts, for which events, with which parameters.

Owns their rows and form on the wire. Whether a delivery is genuine, and what it starts, is `deliveries`.
"""

from __future__ import annotations

import json
import re

from ctrl_exec.common.errors import ConflictError, InvalidFieldsError, NotFoundError
from ctrl_exec.common.value import replace
from ctrl_exec.tasks import audit
from ctrl_exec.tasks.definitions import find_task
from ctrl_exec.tasks.forms import Form, is_line
from ctrl_exec.tasks.models import EXECUTOR, WEBHOOK_SCHEMES, Task, Webhook
from ctrl_exec.tasks.parameters import secret_names
from ctrl_exec.tasks.people.rights import rights_to_leave
from ctrl_exec.tasks.projects import find_project, narrowed, visible_condition
from ctrl_exec.tasks.store import packed
from ctrl_exec.tasks.ulid import ULID, new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Any

    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.sealing import Place, Sealer
    from ctrl_exec.tasks.store import Store

# what a sender shows with each delivery must not be guessed
LEAST_SECRET = 16
_SECRET_LIMIT = 4096
_MOST_FILTERS = 50
_PATH = re.compile(r"[^.\x00-\x1f\x7f]{1,100}(\.[^.\x00-\x1f\x7f]{1,100}){0,15}")
_COLUMNS = (
    "webhook_id, project_id, task_id, name, scheme, user_id, definition, is_enabled, created_ns, updated_ns, "
    "rights"
)


def decode_webhook(document: dict[str, Any], current: Webhook | None = None) -> tuple[Webhook, str | None]:
    """The webhook that a body describes, and its secret if it brings one; what it leaves out stays.

    Raises: InvalidFieldsError.
    """
    form = Form(document)
    known = current or Webhook("", "", "", "", "GENERIC")
    kept = current is not None
    webhook = replace(
        known,
        task_id=form.matching("taskId", ULID, "expected a task's id", *((known.task_id,) if kept else ())),
        name=form.name("name", *((known.name,) if kept else ())),
        scheme=form.choice("scheme", WEBHOOK_SCHEMES, known.scheme),
        events=_filters(form, "events", known.events),
        branches=_filters(form, "branches", known.branches),
        mapping=_decode_mapping(form, known.mapping),
        is_enabled=form.flag("enabledFg", known.is_enabled),
    )
    secret = form.text("secret", *((None,) if kept else ()), least=LEAST_SECRET, most=_SECRET_LIMIT)
    if webhook.scheme == "STANDARD" and secret and standard_key(secret) is None:
        form.refuse("secret", "expected base 64, perhaps after whsec_")
    form.finish()
    return webhook, secret


def _filters(form: Form, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    found: tuple[str, ...] = form.strings(key, default, most=_MOST_FILTERS, each_most=200)
    for place, each in enumerate(found):
        if not each or not is_line(each):
            form.refuse(f"{key}[{place}]", "expected a name")
    return found


def _decode_mapping(form: Form, default: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = form.mapping("parameterMapping", default, most=100)
    for name, path in found.items():
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            expected = "expected a path to a JSON field such as repository.full_name"
            form.refuse(f"parameterMapping.{ascii(name)[1:-1][:80]}", expected)
    return found


def standard_key(secret: str) -> bytes | None:
    """The key of a Standard Webhooks secret, its padding perhaps left out; None if it is none."""
    import base64
    import binascii

    text = secret.removeprefix("whsec_")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True) or None
    except (binascii.Error, ValueError):
        return None


def encode_webhook(webhook: Webhook) -> dict[str, Any]:
    """The webhook on the wire, without its secret."""
    return {
        "webhookId": webhook.webhook_id,
        "creationTs": webhook.created_ns,
        "updateTs": webhook.updated_ns,
        "userId": webhook.user_id,
        "projectId": webhook.project_id,
        "taskId": webhook.task_id,
        "name": webhook.name,
        "scheme": webhook.scheme,
        "events": list(webhook.events),
        "branches": list(webhook.branches),
        "parameterMapping": webhook.mapping,
        "enabledFg": webhook.is_enabled,
    }


def place_of(webhook: Webhook) -> Place:
    """Where its secret stands."""
    return ("webhooks", webhook.webhook_id, "secret")


def find_webhook(store: Store, identity: Identity, webhook_id: str) -> Webhook:
    """Raises: NotFoundError, also where one has no role in its project; DeniedError below MANAGER."""
    missing = f"no webhook {webhook_id[:40]}"
    webhook = load_webhook(store, webhook_id)
    if webhook is None:
        raise NotFoundError(missing)
    identity.require_role(webhook.project_id, "MANAGER", what=missing)
    return webhook


def load_webhook(store: Store, webhook_id: str) -> Webhook | None:
    """The webhook, whoever asks; for its deliveries."""
    row = store.row(f"SELECT {_COLUMNS} FROM webhooks WHERE webhook_id = ?", (webhook_id,))
    return None if row is None else _of_row(row)


def list_webhooks(
    store: Store, identity: Identity, wanted: dict[str, str], *, limit: int = 50, after_id: str = ""
) -> tuple[Webhook, ...]:
    """At most `limit` of those in projects one manages, oldest first.

    `wanted`: project_id, task_id, having (of the name). Raises: NotFoundError; DeniedError.
    """
    condition, values = visible_condition(identity)
    if "project_id" in wanted:
        find_project(store, identity, wanted["project_id"])
        identity.require_role(wanted["project_id"], "MANAGER")
    elif identity.visible is not None:
        values = tuple(each for each in identity.visible if identity.has_role(each, "MANAGER"))
        condition = f"project_id IN ({', '.join('?' * len(values))})"
    more, filters = narrowed(wanted, ("project_id", "task_id"))
    sql = f"""
    SELECT {_COLUMNS} FROM webhooks WHERE {condition} AND {more} AND webhook_id > ?
    ORDER BY webhook_id LIMIT ?
    """
    return tuple(_of_row(row) for row in store.rows(sql, (*values, *filters, after_id, limit)))


def save_webhook(
    store: Store, identity: Identity, sealer: Sealer, draft: Webhook, secret: str | None
) -> Webhook:
    """Add a webhook (one without an id), or save a changed one; it starts its task with this user's rights.

    Raises: NotFoundError without the task; InvalidFieldsError for a mapping to no parameter of it;
    DeniedError; ConflictError if the name is taken; ServiceError without a key.
    """
    task = find_task(store, identity, draft.task_id, EXECUTOR)
    identity.require_role(task.project_id, "MANAGER")
    _check(task, draft)
    now_ns = store.clock_ns()
    is_new = not draft.webhook_id
    webhook = replace(draft, project_id=task.project_id, user_id=identity.user_id, updated_ns=now_ns)
    if identity.via != "cli" or draft.user_id != identity.user_id:  # the prompt widens nobody's rights
        webhook = replace(webhook, rights=rights_to_leave(identity))
    if is_new:
        webhook = replace(webhook, webhook_id=new_ulid(now_ns), created_ns=now_ns)
    with store.writing():
        taken = "SELECT 1 FROM webhooks WHERE project_id = ? AND name = ? AND webhook_id != ?"
        if store.row(taken, (webhook.project_id, webhook.name, webhook.webhook_id)) is not None:
            raise ConflictError(f"there is a webhook {webhook.name!r} in this project already")
        row = store.row("SELECT sealed FROM webhooks WHERE webhook_id = ?", (webhook.webhook_id,))
        sealed = row["sealed"] if row is not None else b""
        if secret is not None:
            sealed = sealer.seal(place_of(webhook), secret.encode("utf-8"))
        _write(store, webhook, sealed)
        act = ("create" if is_new else "update", "webhook", webhook.webhook_id)
        audit.record(store, identity, act, project_id=webhook.project_id, after=encode_webhook(webhook))
    return webhook


def _check(task: Task, webhook: Webhook) -> None:
    """Raises: InvalidFieldsError."""
    known = {each.name for each in task.parameters}
    secret = secret_names(task.parameters)
    for name in webhook.mapping:
        key = f"parameterMapping.{ascii(name)[1:-1][:80]}"
        fault = "no parameter of this task" if name not in known else "a SECRET is not mapped"
        if name not in known or name in secret:
            raise InvalidFieldsError(f"{key}: {fault}", {key: fault})


def _write(store: Store, webhook: Webhook, sealed: bytes) -> None:
    definition = {"events": webhook.events, "branches": webhook.branches, "mapping": webhook.mapping}
    sql = """
    INSERT INTO webhooks (webhook_id, project_id, task_id, name, scheme, user_id, definition, sealed,
      is_enabled, created_ns, updated_ns, rights) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (webhook_id) DO UPDATE SET project_id = excluded.project_id, task_id = excluded.task_id,
      name = excluded.name, scheme = excluded.scheme, user_id = excluded.user_id, sealed = excluded.sealed,
      definition = excluded.definition, is_enabled = excluded.is_enabled, updated_ns = excluded.updated_ns,
      rights = excluded.rights
    """
    own = (
        webhook.webhook_id,
        webhook.project_id,
        webhook.task_id,
        webhook.name,
        webhook.scheme,
        webhook.user_id,
    )
    state = (int(webhook.is_enabled), webhook.created_ns, webhook.updated_ns, webhook.rights)
    store.execute(sql, (*own, packed(definition), sealed, *state))


def remove_webhook(store: Store, identity: Identity, webhook_id: str) -> None:
    """Forget a webhook. Raises: NotFoundError; DeniedError."""
    before = find_webhook(store, identity, webhook_id)
    with store.writing():
        store.execute("DELETE FROM webhooks WHERE webhook_id = ?", (webhook_id,))
        act = ("delete", "webhook", webhook_id)
        audit.record(store, identity, act, project_id=before.project_id, before=encode_webhook(before))


def load_secret(store: Store, sealer: Sealer, webhook: Webhook) -> str:
    """What its senders know; empty where none was set. Raises: StorageError."""
    row = store.row("SELECT sealed FROM webhooks WHERE webhook_id = ?", (webhook.webhook_id,))
    if row is None or not row["sealed"]:
        return ""
    return sealer.unseal(place_of(webhook), row["sealed"]).decode("utf-8")


def _of_row(row: sqlite3.Row) -> Webhook:
    definition = json.loads(row["definition"])
    return Webhook(
        webhook_id=row["webhook_id"],
        project_id=row["project_id"],
        task_id=row["task_id"],
        name=row["name"],
        scheme=row["scheme"],
        user_id=row["user_id"],
        events=tuple(definition["events"]),
        branches=tuple(definition["branches"]),
        mapping=definition["mapping"],
        is_enabled=bool(row["is_enabled"]),
        created_ns=row["created_ns"],
        updated_ns=row["updated_ns"],
        rights=row["rights"],
    )
