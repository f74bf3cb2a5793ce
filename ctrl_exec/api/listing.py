"""`GET /runs`: the list of runs, filtered, a page at a time.

Owns the query's form and that of the cursor. Which runs a caller may list is the operation's.
"""

from __future__ import annotations

import re
from datetime import datetime

from ctrl_exec.api.inquiry import query_of
from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.common.names import check_agent_name, check_script
from ctrl_exec.common.routing import json_response
from ctrl_exec.operations.runs import MAX_LIMIT, head_json, list_runs
from ctrl_exec.services.records import STATES
from ctrl_exec.services.run_filter import RunFilter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctrl_exec.api.inquiry import Inquiry
    from ctrl_exec.common.routing import Response
    from ctrl_exec.services.run_filter import Key

LIST_KEYS = ("state", "script", "host", "user", "since", "limit", "cursor")
_DEFAULT_LIMIT = 100
_LONGEST_USER = 256
_CURSOR = re.compile(r"([0-9a-f]{1,14})-([0-9a-f]{8,32})", re.ASCII)
_DIGITS = re.compile(r"[0-9]{1,15}", re.ASCII)
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", re.ASCII)


def show_runs(inquiry: Inquiry) -> Response:
    """`GET /runs`."""
    given = query_of(inquiry.request, LIST_KEYS)
    limit = _limit(given.get("limit", str(_DEFAULT_LIMIT)))
    after = _place(given["cursor"]) if "cursor" in given else None
    page = list_runs(inquiry.dispatcher, inquiry.caller, decode_filter(given), limit=limit, after=after)
    shown: dict[str, object] = {"ok": True, "runs": [head_json(head) for head in page.runs]}
    if page.after is not None:
        shown["cursor"] = f"{page.after[0]:x}-{page.after[1]}"
    if page.is_indexing:
        shown["indexing"] = True
    return json_response(200, shown)


def decode_filter(given: dict[str, str]) -> RunFilter:
    """Which runs the parameters ask for. Raises: InvalidInputError naming the parameter."""
    state, user = given.get("state", ""), given.get("user", "")
    if "state" in given and state not in STATES:
        raise InvalidInputError(f"state: expected one of {', '.join(STATES)}", field="state")
    if "user" in given and not (0 < len(user) <= _LONGEST_USER and user.isprintable()):
        raise InvalidInputError(f"user: expected 1 to {_LONGEST_USER} printable characters", field="user")
    return RunFilter(
        state=state,
        script=check_script(given["script"]) if "script" in given else "",
        host=check_agent_name(given["host"]) if "host" in given else "",
        user=user,
        since=_moment(given["since"]) if "since" in given else None,
    )


def _limit(text: str) -> int:
    if not _DIGITS.fullmatch(text) or not 1 <= int(text) <= MAX_LIMIT:
        raise InvalidInputError(f"limit: expected a number from 1 to {MAX_LIMIT}", field="limit")
    return int(text)


def _place(text: str) -> Key:
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise InvalidInputError("cursor: expected what an earlier answer gave as cursor", field="cursor")
    return int(found[1], 16), found[2]


def _moment(text: str) -> int:
    if _DIGITS.fullmatch(text):
        return int(text)
    if _MOMENT.fullmatch(text):
        try:
            return int(datetime.fromisoformat(text).timestamp())
        except ValueError:  # a 30th of February
            pass
    raise InvalidInputError(
        "since: expected seconds of the epoch or a moment such as 2026-01-31T12:00:00Z", field="since"
    )
