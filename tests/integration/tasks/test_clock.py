"""When something would start, over HTTP: previews of expressions, the next starts of a task."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from tests.support.office import Office
from tests.support.processes import run

NS = 1_000_000_000


def at_ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * NS


def test_a_preview_over_a_change_of_the_clocks(office: Office) -> None:
    """Anybody with a token, with or without a role."""
    body = {
        "cronExpression": "30 2 * * *", "cronTimezone": "Europe/Berlin", "count": 2,
        "startTs": at_ns("2026-03-28T12:00+01:00"),
    }  # fmt: skip
    for by in ("admin", "nobody"):
        answer = office.ask("POST", "/api/v1/cron/preview", body, by=by)
        assert answer.status == 200
        assert answer.json == {"items": [at_ns("2026-03-29T03:00+02:00"), at_ns("2026-03-30T02:30+02:00")]}


def test_a_preview_from_now(office: Office) -> None:
    before_ns = int(datetime.now(UTC).timestamp()) * NS
    answer = office.ask("POST", "/api/v1/cron/preview", {"cronExpression": "*/5 * * * * *"})
    moments = answer.json["items"]
    assert len(moments) == 5
    assert moments[0] > before_ns
    assert {later - sooner for sooner, later in pairwise(moments)} == {5 * NS}
    never = office.ask("POST", "/api/v1/cron/preview", {"cronExpression": "0 0 30 2 *"})
    assert never.json == {"items": []}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"cronExpression": "61 * * * *"}, "cronExpression"),
        ({"cronExpression": "* * * * *", "cronTimezone": "Mars/Olympus"}, "cronTimezone"),
        ({"cronExpression": "* * * * *", "startTs": "0"}, "startTs"),
        ({"cronExpression": "* * * * *", "count": 101}, "count"),
    ],
)
def test_faults_of_a_preview(office: Office, body: dict[str, Any], field: str) -> None:
    answer = office.ask("POST", "/api/v1/cron/preview", body)
    assert answer.status == 400
    assert list(answer.json["fields"]) == [field]


def test_the_next_starts_of_a_task(office: Office) -> None:
    """Its own five, as many as are asked for, none once it is off."""
    fields = {"scheduledFg": True, "cronExpression": "0 9 * * *", "cronTimezone": "Asia/Tokyo"}
    task = office.create_task(**fields)
    path = f"/api/v1/tasks/{task['taskId']}/upcoming"
    items = office.ask("GET", path).json["items"]
    assert [item["cronTimezone"] for item in items] == ["Asia/Tokyo"] * 5
    assert {item["scheduledTs"] // NS % 86400 for item in items} == {0}
    assert len(office.ask("GET", path + "?count=2").json["items"]) == 2
    for wrong in ("0", "101", "x", "-1", "%C2%B2"):
        answer = office.ask("GET", f"{path}?count={wrong}")
        assert answer.status == 400
    assert office.ask("PATCH", f"/api/v1/tasks/{task['taskId']}", {"enabledFg": False}).status == 200
    assert office.ask("GET", path).json == {"items": []}
    assert office.ask("GET", path, by="nobody").status == 404


def test_what_is_due_next_of_all_tasks(office: Office) -> None:
    """Page by page without loss or repetition, for those who may see it, and at the prompt the same."""
    with office.store() as store:
        begin_ns = store.clock_ns() // NS * NS + 86_400 * NS
    name = "Every minute of the day"
    fields = {"scheduledFg": True, "cronExpression": "* * * * *", "name": name}
    task = office.create_task(**fields)
    path = f"/api/v1/upcoming?q=EVERY+minute&from={begin_ns}&to={begin_ns + 600 * NS}"
    items = office.ask("GET", path).json["items"]
    assert isinstance(items, list)
    assert len(items) == 10
    assert {(each["taskId"], each["projectId"], each["name"]) for each in items} == {
        (task["taskId"], task["projectId"], name)
    }
    assert {later["scheduledTs"] - sooner["scheduledTs"] for sooner, later in pairwise(items)} == {60 * NS}
    paged: list[Any] = []
    cursor: object = ""
    while cursor is not None:
        page = office.ask("GET", f"{path}&limit=4&cursor={cursor}").json
        paged += page["items"]  # type: ignore[operator]
        cursor = page["nextCursor"]
    assert paged == items
    assert office.ask("GET", path, by="viewer").json["items"] == items
    assert office.ask("GET", path, by="stranger").json == {"items": [], "nextCursor": None}
    assert office.ask("GET", f"/api/v1/upcoming?projectId={task['projectId']}", by="stranger").status == 404
    for wrong in ("from=x", "to=-1", "cursor=x", "limit=0", "when=now"):
        assert office.ask("GET", f"/api/v1/upcoming?{wrong}").status == 400, wrong
    shown = json.loads(run("ctrl-exec", "--config", office.conf, "task", "next", "--json").stdout)
    assert set(shown["items"][0]) == set(items[0])


def test_the_next_starts_at_the_prompt(office: Office) -> None:
    """As a table in each schedule's zone, or with --json as the API tells them."""
    fields = {"scheduledFg": True, "cronExpression": "0 9 1 1 *", "cronTimezone": "Asia/Tokyo"}
    task = office.create_task(**fields)
    options = ("--config", office.conf, "--username", "admin")
    shown = run("ctrl-exec", *options, "task", "next", task["taskId"])
    assert shown.returncode == 0
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert lines[0] == ["START", "ZONE", "CRON"]
    assert lines[2][0].endswith("-01-01T09:00:00+09:00")
    assert lines[2][1:] == ["Asia/Tokyo", "0", "9", "1", "1", "*"]
    found = run("ctrl-exec", *options, "task", "next", task["name"], "--json")
    items = office.ask("GET", f"/api/v1/tasks/{task['taskId']}/upcoming").json["items"]
    assert json.loads(found.stdout) == {"ok": True, "items": items}
    assert run("ctrl-exec", *options, "task", "next", "no such task").returncode == 1
