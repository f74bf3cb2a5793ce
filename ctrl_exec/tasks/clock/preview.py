"""When something would be due: the answer to `POST /api/v1/cron/preview`.

Owns the wire form of question and answer. Cron and zones are others'.
"""

from __future__ import annotations

from ctrl_exec.common.errors import InvalidInputError
from ctrl_exec.tasks.clock.cron import LIMIT_CHARACTERS, preview
from ctrl_exec.tasks.clock.zones import zone_named
from ctrl_exec.tasks.forms import Form

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import tzinfo
    from typing import Any

NS = 1_000_000_000
KEYS = ("cronExpression", "cronTimezone", "startTs", "count")
MOST_ITEMS = 100
USUAL_ITEMS = 5
_LONGEST_NAME = 120


def answer(document: dict[str, Any], now_ns: int, local: tzinfo) -> dict[str, list[int]]:
    """The next moments strictly after `startTs` (now without one), `{"items": [ns…]}`.

    `local` is the zone where none is named. Raises: InvalidFieldsError.
    """
    form = Form(document)
    expression = form.text("cronExpression", most=LIMIT_CHARACTERS, least=1)
    name = form.text("cronTimezone", None, most=_LONGEST_NAME, least=1)
    start_ns = form.whole("startTs", 0, default=now_ns)
    count = form.whole("count", 1, MOST_ITEMS, USUAL_ITEMS)
    moments: tuple[int, ...] = ()
    if not form.faults:
        try:
            zone = zone_named(name) if name else local
            moments = preview(expression, zone, start_ns // NS, count)
        except InvalidInputError as error:
            form.refuse(error.field, str(error))
    form.finish()
    return {"items": [moment * NS for moment in moments]}
