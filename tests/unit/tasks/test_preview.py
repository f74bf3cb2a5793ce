"""Previews on the wire: nanoseconds, bounds, every fault by its key."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from ctrl_exec.common.errors import InvalidFieldsError
from ctrl_exec.tasks.clock.preview import answer
from ctrl_exec.tasks.clock.zones import zone_named

NS = 1_000_000_000
NOW_NS = int(datetime(2026, 1, 15, 12, tzinfo=UTC).timestamp()) * NS


def ask(**document: Any) -> list[str]:
    found = answer({"cronExpression": "0 9 * * *", **document}, NOW_NS, UTC)
    return [datetime.fromtimestamp(each / NS, UTC).isoformat()[:19] for each in found["items"]]


def test_the_next_five_from_now() -> None:
    assert ask() == [f"2026-01-{day}T09:00:00" for day in (16, 17, 18, 19, 20)]


def test_strictly_after_the_start() -> None:
    """A start that is a due time does not count; a nanosecond before it does."""
    nine_ns = NOW_NS + 21 * 3600 * NS
    assert ask(startTs=nine_ns, count=1) == ["2026-01-17T09:00:00"]
    assert ask(startTs=nine_ns - 1, count=1) == ["2026-01-16T09:00:00"]
    assert ask(startTs=nine_ns + 1, count=1) == ["2026-01-17T09:00:00"]


def test_zones() -> None:
    """The one that is named, else that of the machine."""
    assert ask(cronTimezone="Asia/Tokyo", count=1) == ["2026-01-16T00:00:00"]
    found = answer({"cronExpression": "0 9 * * *", "count": 1}, NOW_NS, zone_named("Asia/Tokyo"))
    assert found == {"items": [NOW_NS + 12 * 3600 * NS]}


def test_seconds_and_never() -> None:
    assert ask(cronExpression="*/30 * * * * *", count=2) == ["2026-01-15T12:00:30", "2026-01-15T12:01:00"]
    assert ask(cronExpression="0 0 30 2 *") == []
    assert len(ask(cronExpression="* * * * *", count=100)) == 100


@pytest.mark.parametrize(
    ("document", "key", "says"),
    [
        ({"cronExpression": "61 * * * *"}, "cronExpression", "minute"),
        ({"cronExpression": 5}, "cronExpression", "expected"),
        ({"cronExpression": None}, "cronExpression", "expected"),
        ({"cronTimezone": "Mars/Olympus"}, "cronTimezone", "Mars"),
        ({"cronTimezone": True}, "cronTimezone", "expected"),
        ({"startTs": -1}, "startTs", "expected"),
        ({"startTs": "now"}, "startTs", "expected"),
        ({"startTs": 1.5}, "startTs", "expected"),
        ({"count": 0}, "count", "100"),
        ({"count": 101}, "count", "100"),
        ({"count": True}, "count", "100"),
        ({"zone": "UTC"}, "zone", "unknown"),
    ],
)
def test_faults(document: dict[str, Any], key: str, says: str) -> None:
    with pytest.raises(InvalidFieldsError) as caught:
        ask(**document)
    assert list(caught.value.fields) == [key]
    assert says in caught.value.fields[key]
