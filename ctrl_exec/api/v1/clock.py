"""`/api/v1/cron/preview`, `/api/v1/upcoming`, `/api/v1/tasks/{taskId}/upcoming`: what starts by the clock."""

from __future__ import annotations

from ctrl_exec.api.inquiry import query_of
from ctrl_exec.api.v1.asking import TaskRoute, moments_of, page_of
from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.common.routing import Response, json_response

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import tzinfo

    from ctrl_exec.api.v1.asking import Asking

PREVIEW_KEYS = ("cronExpression", "cronTimezone", "startTs", "count")
UPCOMING_KEYS = ("count",)
AGENDA_KEYS = ("projectId", "q", "from", "to", "limit", "cursor")
_MOST_DIGITS = 4


def preview(asking: Asking) -> Response:
    """`POST /api/v1/cron/preview`."""
    from ctrl_exec.tasks.clock.preview import answer

    return json_response(200, answer(asking.document, asking.store.clock_ns(), _local_zone(asking)))


def upcoming(asking: Asking) -> Response:
    """`GET /api/v1/tasks/{taskId}/upcoming`."""
    from ctrl_exec.tasks.clock import upcoming as starts
    from ctrl_exec.tasks.definitions import find_task

    task = find_task(asking.store, asking.identity, asking.parameters["taskId"])
    written = query_of(asking.request, UPCOMING_KEYS).get("count", str(starts.USUAL_ITEMS))
    is_number = written.isascii() and written.isdigit() and len(written) <= _MOST_DIGITS
    if not is_number or not 1 <= int(written) <= starts.MOST_ITEMS:
        raise InvalidInputError(f"count: expected 1 to {starts.MOST_ITEMS}", field="count")
    now_s = asking.store.clock_ns() / starts.NS
    found = starts.upcoming(task, _local_zone(asking), now_s, int(written))
    return json_response(200, {"items": [starts.encode_upcoming(each) for each in found]})


def agenda(asking: Asking) -> Response:
    """`GET /api/v1/upcoming`: the next starts of all tasks one may see."""
    from ctrl_exec.tasks.clock import agenda as starts

    query = query_of(asking.request, AGENDA_KEYS)
    limit, cursor = page_of(query)
    first_s, until_s = starts.span_of(*moments_of(query), asking.store.clock_ns())
    wanted = starts.Wanted(
        from_s=first_s,
        until_s=until_s,
        after=starts.decode_cursor(cursor),
        project_id=query.get("projectId"),
        having=query.get("q", ""),
    )
    page = starts.agenda(asking.store, asking.identity, wanted, _local_zone(asking), limit)
    items = [starts.encode_entry(each) for each in page.entries]
    return json_response(200, {"items": items, "nextCursor": starts.encode_cursor(page.after)})


def _local_zone(asking: Asking) -> tzinfo:
    from ctrl_exec.tasks.clock.zones import local_zone

    return local_zone(asking.dispatcher.environment)


CLOCK_ROUTES = (
    TaskRoute("POST", "/api/v1/cron/preview", "cron-preview", preview, "read", PREVIEW_KEYS, needs_body=True),
    TaskRoute("GET", "/api/v1/upcoming", "upcoming", agenda, query=AGENDA_KEYS),
    TaskRoute("GET", "/api/v1/tasks/{taskId}/upcoming", "task-upcoming", upcoming, query=UPCOMING_KEYS),
)
