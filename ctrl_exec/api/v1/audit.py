"""`GET /api/v1/audit`: who did what."""

from __future__ import annotations

from ctrl_exec.api.inquiry import query_of
from ctrl_exec.api.v1.asking import list_response, page_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctrl_exec.api.v1.asking import Asking
    from ctrl_exec.common.routing import Response
    from ctrl_exec.tasks.models import AuditEntry

_COLUMNS = {
    "objectType": "object_type", "objectId": "object_id", "projectId": "project_id", "userId": "user_id",
    "action": "action",
}  # fmt: skip
LIST_KEYS = (*_COLUMNS, "limit", "cursor")


def index(asking: Asking) -> Response:
    """Entries, newest first: all for an administrator, those of one project for its manager."""
    from ctrl_exec.tasks.audit import list_entries

    query = query_of(asking.request, LIST_KEYS)
    limit, cursor = page_of(query)
    if "projectId" in query:
        asking.identity.require_role(query["projectId"], "MANAGER")
    else:
        asking.identity.require_administrator()
    wanted = {column: query[key] for key, column in _COLUMNS.items() if key in query}
    found = list_entries(asking.store, wanted, limit=limit + 1, before_id=cursor or None)
    return list_response(found, limit, _encoded, lambda entry: entry.audit_id)


def _encoded(entry: AuditEntry) -> dict[str, Any]:
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
