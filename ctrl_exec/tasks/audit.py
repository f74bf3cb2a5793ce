"""The audit log: who did what to which object, from where, with what before and after.

Owns its rows, which are only added until their time is over. What is secret does not come here, or masked.
"""

from __future__ import annotations

import json

from ctrl_exec.tasks.models import AuditEntry
from ctrl_exec.tasks.store import packed
from ctrl_exec.tasks.ulid import new_ulid

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Any

    from ctrl_exec.tasks.people.identity import Identity
    from ctrl_exec.tasks.store import Store

MASK = "••••"
_COLUMNS = (
    "audit_id, at_ns, action, object_type, object_id, project_id, user_id, username, token_id, source_ip, "
    "via, before, after"
)
_FILTERS = ("object_type", "object_id", "project_id", "user_id", "action")


def record(
    store: Store,
    identity: Identity,
    act: tuple[str, str, str],
    *,
    project_id: str | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Add an entry; `act` is (action, object type, object id). Within the transaction of the change."""
    now_ns = store.clock_ns()
    action, object_type, object_id = act
    texts = {
        name: None if document is None else packed(document)
        for name, document in (("before", before), ("after", after))
    }
    row = {
        "audit_id": new_ulid(now_ns), "at_ns": now_ns, "action": action, "object_type": object_type,
        "object_id": object_id, "project_id": project_id, "user_id": identity.user_id or None,
        "username": identity.username, "token_id": identity.token_id or None,
        "source_ip": identity.source_ip, "via": identity.via,
    }  # fmt: skip
    store.insert("audit", row | texts)


def list_entries(
    store: Store,
    wanted: dict[str, str],
    *,
    limit: int = 50,
    before_id: str | None = None,
    span_ns: tuple[int | None, int | None] = (None, None),
) -> tuple[AuditEntry, ...]:
    """At most `limit` entries, newest first; `wanted` are columns and their content.

    `span_ns` is the time they are of: its beginning belongs to it, its end does not.
    """
    conditions = ["1"] + [f"{name} = ?" for name in _FILTERS if name in wanted]
    values: list[Any] = [wanted[name] for name in _FILTERS if name in wanted]
    for sign, at_ns in zip((">=", "<"), span_ns, strict=True):
        if at_ns is not None:
            conditions.append(f"at_ns {sign} ?")
            values.append(at_ns)
    if before_id is not None:
        conditions.append("audit_id < ?")
        values.append(before_id)
    sql = f"SELECT {_COLUMNS} FROM audit WHERE {' AND '.join(conditions)} ORDER BY audit_id DESC LIMIT ?"
    return tuple(_of_row(row) for row in store.rows(sql, (*values, limit)))


def find_entry(store: Store, audit_id: str) -> AuditEntry | None:
    """The entry of that id, None without one."""
    row = store.row(f"SELECT {_COLUMNS} FROM audit WHERE audit_id = ?", (audit_id,))
    return None if row is None else _of_row(row)


def encode_entry(entry: AuditEntry) -> dict[str, Any]:
    """The entry on the wire."""
    return {
        "auditId": entry.audit_id,
        "ts": entry.at_ns,
        "action": entry.action,
        "objectType": entry.object_type,
        "objectId": entry.object_id,
        "projectId": entry.project_id,
        "userId": entry.user_id,
        "username": entry.username,
        "tokenId": entry.token_id,
        "sourceIp": entry.source_ip,
        "via": entry.via,
        "before": entry.before,
        "after": entry.after,
    }


def purge_audit(store: Store, before_ns: int, *, most: int) -> int:
    """Forget entries of before then, the oldest first and at most so many; gives how many.

    The database refuses it for those of the last 90 days.
    """
    sql = "DELETE FROM audit WHERE rowid IN (SELECT rowid FROM audit WHERE at_ns < ? ORDER BY at_ns LIMIT ?)"
    return store.execute(sql, (before_ns, most))


def _of_row(row: sqlite3.Row) -> AuditEntry:
    content = dict(row)
    content |= {
        name: None if content[name] is None else json.loads(content[name]) for name in ("before", "after")
    }
    return AuditEntry(**content)
