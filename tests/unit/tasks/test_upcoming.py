"""The next starts of a task: over its schedules and zones, without what its calendar leaves out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ctrl_exec.tasks.clock.upcoming import encode_upcoming, upcoming
from ctrl_exec.tasks.clock.zones import zone_named
from ctrl_exec.tasks.codec import decode_task

NOON = int(datetime(2026, 1, 15, 12, tzinfo=UTC).timestamp())  # a Thursday
BERLIN = zone_named("Europe/Berlin")


def shown(count: int = 5, **fields: Any) -> list[str]:
    document = {
        "projectId": "p", "name": "t", "taskType": "AGENT_SCRIPT", "scheduledFg": True,
        "agentScriptTask": {"script": "job", "hosts": ["@all"]}, **fields,
    }  # fmt: skip
    starts = upcoming(decode_task(document), BERLIN, NOON, count)
    return [datetime.fromtimestamp(each.due_s, each.zone).isoformat()[5:] for each in starts]


def test_the_next_five_in_its_zone() -> None:
    days = (16, 17, 18, 19, 20)
    assert shown(cronExpression="0 9 * * *") == [f"01-{day}T09:00:00+01:00" for day in days]
    assert shown(1, cronExpression="0 9 * * *", cronTimezone="Asia/Tokyo") == ["01-16T09:00:00+09:00"]


def test_several_schedules_in_order() -> None:
    schedules = [
        {"cronExpression": "0 15 * * *"},
        {"cronExpression": "30 14 * * *", "cronTimezone": "UTC"},
    ]
    found = shown(4, cronExpression="0 20 * * *", schedules=schedules)
    assert found == [
        "01-15T15:00:00+01:00",
        "01-15T14:30:00+00:00",
        "01-15T20:00:00+01:00",
        "01-16T15:00:00+01:00",
    ]


def test_without_what_the_calendar_leaves_out() -> None:
    calendar = {"mode": "EXCLUDE", "dates": ["2026-01-16", "2026-01-17"]}
    assert shown(1, cronExpression="0 9 * * *", calendar=calendar) == ["01-18T09:00:00+01:00"]
    calendar = {"mode": "RESTRICT", "dates": ["2026-03-01"]}
    assert shown(2, cronExpression="0 9,10 * * *", calendar=calendar) == [
        "03-01T09:00:00+01:00",
        "03-01T10:00:00+01:00",
    ]


def test_never() -> None:
    """Switched off, not scheduled, no such date, nothing left by the calendar."""
    assert shown(cronExpression="0 9 * * *", enabledFg=False) == []
    assert shown(scheduledFg=False) == []
    assert shown(cronExpression="0 0 30 2 *") == []
    assert shown(cronExpression="* * * * * *", calendar={"mode": "RESTRICT", "dates": ["2020-01-01"]}) == []


def test_on_the_wire() -> None:
    document = {
        "projectId": "p", "name": "t", "taskType": "AGENT_SCRIPT", "scheduledFg": True,
        "schedules": [{"cronExpression": "0 9 * * *", "parameterMap": {"A": "b"}}],
        "parameters": [{"name": "A", "type": "TEXT"}],
        "agentScriptTask": {"script": "job", "hosts": ["@all"]},
    }  # fmt: skip
    [start] = upcoming(decode_task(document), UTC, NOON, 1)
    assert encode_upcoming(start) == {
        "scheduledTs": (NOON + 21 * 3600) * 10**9,
        "cronExpression": "0 9 * * *",
        "cronTimezone": None,
        "parameterMap": {"A": "b"},
    }
