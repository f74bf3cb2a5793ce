"""`GET /api/v1/audit`: who did what."""

from __future__ import annotations

from ctrl_exec.api.inquiry import query_of
from ctrl_exec.api.v1.asking import check_ids, list_response, moments_of, page_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.api.v1.asking import Asking
    from ctrl_exec.common.routing import Response

_COLUMNS = {
    "objectType": "object_type", "objectId": "object_id", "projectId": "project_id", "userId": "user_id",
    "action": "action",
}  # fmt: skip
LIST_KEYS = (*_COLUMNS, "from", "to", "limit", "cursor")


def index(asking: Asking) -> Response:
    """Entries, newest first: all for an administrator, those of one project for its manager."""
    from ctrl_exec.tasks.audit import encode_entry, list_entries

    query = query_of(asking.request, LIST_KEYS)
    limit, cursor = page_of(query)
    check_ids(query, "userId")
    if "projectId" in query:
        asking.identity.require_role(query["projectId"], "MANAGER")
    else:
        asking.identity.require_administrator()
    wanted = {column: query[key] for key, column in _COLUMNS.items() if key in query}
    span_ns = moments_of(query)
    found = list_entries(asking.store, wanted, limit=limit + 1, before_id=cursor or None, span_ns=span_ns)
    return list_response(found, limit, encode_entry, lambda entry: entry.audit_id)
