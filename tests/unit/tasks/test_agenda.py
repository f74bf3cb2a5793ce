"""What is due next over many tasks: order, pages, spans, calendars, rights; the time is given."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from ctrl_exec.common.errors import InvalidInputError, NotFoundError
from ctrl_exec.common.log import Log
from ctrl_exec.common.value import replace
from ctrl_exec.tasks.clock import agenda
from ctrl_exec.tasks.clock.clockwork import Clockwork
from ctrl_exec.tasks.clock.cron import parse_cron
from ctrl_exec.tasks.definitions import create_task
from ctrl_exec.tasks.models import Project, User
from ctrl_exec.tasks.people.identity import Identity, local_identity
from ctrl_exec.tasks.people.users import add_user
from ctrl_exec.tasks.projects import add_project
from ctrl_exec.tasks.store import Store

NOON = int(datetime(2026, 1, 15, 12, tzinfo=UTC).timestamp())  # a Thursday


@pytest.fixture
def identity(store: Store) -> Identity:
    root = local_identity(store, "root")
    add_user(store, root, User("", "alice", is_administrator=True))
    for name in ("One", "Two"):
        add_project(store, root, Project("", name))
    return local_identity(store, "alice")


@pytest.fixture
def add(store: Store, identity: Identity) -> Callable[..., str]:
    """Adds a task; gives its id."""

    def add_task(name: str, **fields: Any) -> str:
        document = {
            "projectId": "one", "name": name, "taskType": "AGENT_SCRIPT", "scheduledFg": True,
            "agentScriptTask": {"script": "job", "hosts": ["@all"]}, **fields,
        }  # fmt: skip
        return create_task(store, identity, document).task_id

    return add_task


def shown(page: agenda.Page) -> list[str]:
    return [f"{each.name} {datetime.fromtimestamp(each.start.due_s, UTC):%d %H:%M}" for each in page.entries]


def test_all_tasks_in_one_order_page_by_page(
    store: Store, identity: Identity, add: Callable[..., str]
) -> None:
    """Also those of one moment: each once, whatever the size of pages."""
    add("a", cronExpression="0 14,16 * * *")
    add("b", cronExpression="0 14 * * *", schedules=[{"cronExpression": "0 14 * * *"}])
    add("c", projectId="two", cronExpression="0 15 * * *", cronTimezone="Europe/Berlin")
    add("off", cronExpression="* * * * *", enabledFg=False)
    add("unscheduled", scheduledFg=False)
    wanted = agenda.Wanted(NOON, NOON + 86400)
    whole = agenda.agenda(store, identity, wanted, UTC, 100)
    expected = ["a 15 14:00", "b 15 14:00", "b 15 14:00", "c 15 14:00", "a 15 16:00"]
    assert (shown(whole), whole.after) == (expected, None)
    for size in (1, 2, 3, 4):
        found: list[str] = []
        page = agenda.agenda(store, identity, wanted, UTC, size)
        found += shown(page)
        while page.after is not None:
            after = agenda.decode_cursor(agenda.encode_cursor(page.after) or "")
            page = agenda.agenda(store, identity, replace(wanted, after=after), UTC, size)
            found += shown(page)
        assert found == expected, size
    assert shown(agenda.agenda(store, identity, replace(wanted, project_id="two"), UTC, 9)) == ["c 15 14:00"]
    assert len(shown(agenda.agenda(store, identity, replace(wanted, having="B"), UTC, 9))) == 2


def test_the_span_is_half_open(store: Store, identity: Identity, add: Callable[..., str]) -> None:
    add("a", cronExpression="0 * * * *")
    found = agenda.agenda(store, identity, agenda.Wanted(NOON, NOON + 2 * 3600), UTC, 9)
    assert shown(found) == ["a 15 12:00", "a 15 13:00"]
    assert agenda.agenda(store, identity, agenda.Wanted(NOON, NOON), UTC, 9) == agenda.Page((), None)
    now_ns = NOON * agenda.NS
    assert agenda.span_of(None, None, now_ns) == (NOON + 1, None)
    assert agenda.span_of(0, now_ns, now_ns) == (NOON + 1, NOON)
    assert agenda.span_of(now_ns + 5 * agenda.NS, now_ns + 1, now_ns) == (NOON + 5, NOON + 1)


def test_what_the_scheduler_has_noted_changes_no_page(
    store: Store, identity: Identity, add: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pages before and after, from now and from later on; and few timers are looked at for them."""
    for number in range(90):
        add(
            f"daily {number}",
            cronExpression=f"{number * 7 % 60} {number % 24} * * *",
            cronTimezone="Europe/Berlin",
        )
    add("minutes", cronExpression="*/20 * * * *")
    add("never", cronExpression="0 0 30 2 *")
    add("other", projectId="two", cronExpression="0 0 * * *")
    now_s = store.clock_ns() // agenda.NS
    spans = ((now_s + 1, None), (now_s + 1, now_s + 7200), (now_s + 40_000, now_s + 50_000))

    monkeypatch.setattr(agenda, "_SLICE", 16)

    def pages() -> list[agenda.Page]:
        found = []
        for from_s, until_s in spans:
            wanted = agenda.Wanted(from_s, until_s)
            for _ in range(3):
                found.append(agenda.agenda(store, identity, wanted, UTC, 40))
                wanted = replace(wanted, after=found[-1].after)
                if found[-1].after is None:
                    break
        return found

    computed = pages()
    assert any(page.entries for page in computed)
    clockwork = Clockwork(store, UTC, Log("test", stream=io.StringIO()))
    while clockwork.refresh(now_s):
        pass
    assert store.rows("SELECT 1 FROM timers WHERE next_s = 0") == []
    assert pages() == computed
    parsed: list[str] = []

    def counted(text: str, *, allow_seconds: bool) -> object:
        parsed.append(text)
        return parse_cron(text, allow_seconds=allow_seconds)

    monkeypatch.setattr(agenda, "parse_cron", counted)
    assert len(agenda.agenda(store, identity, agenda.Wanted(now_s + 1), UTC, 10).entries) == 10
    assert len(parsed) <= 12


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_what_the_scheduler_notes_meanwhile_is_not_told_twice(
    store: Store, identity: Identity, add: Callable[..., str], names: tuple[str, ...]
) -> None:
    """Between the reads of those that are not noted and those that are."""
    for name in names:
        add(name, cronExpression="0 14 * * *")
    now_s = store.clock_ns() // agenda.NS
    wanted = agenda.Wanted(now_s + 1, now_s + 1 + 86400)
    expected = agenda.agenda(store, identity, wanted, UTC, 100)
    assert len(expected.entries) == len(names)
    clockwork = Clockwork(store, UTC, Log("test", stream=io.StringIO()))

    class Noted:
        """The store, in which the scheduler notes what it can after each read of timers."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def rows(self, sql: str, parameters: Any = ()) -> Any:
            found = store.rows(sql, parameters)
            if "FROM timers" in sql:
                clockwork.refresh(now_s)
            return found

    reading: Any = Noted()
    assert agenda.agenda(reading, identity, wanted, UTC, 100) == expected
    assert store.rows("SELECT 1 FROM timers WHERE next_s = 0") == []


def test_calendars_leave_out_and_a_page_ends_in_time(
    store: Store, identity: Identity, add: Callable[..., str]
) -> None:
    """A calendar that leaves out nearly all ends a page early, and the next one goes on."""
    never = {"mode": "RESTRICT", "dates": ["2026-01-16"]}
    add("a", cronExpression="0 */6 * * *", calendar=never)
    add("b", cronExpression="0 18 * * *", calendar={"mode": "EXCLUDE", "dates": ["2026-01-15"]})
    wanted = agenda.Wanted(NOON, NOON + 2 * 86400)
    expected = ["a 16 00:00", "a 16 06:00", "a 16 12:00", "a 16 18:00", "b 16 18:00"]
    assert shown(agenda.agenda(store, identity, wanted, UTC, 9)) == expected
    first = agenda.agenda(store, identity, wanted, UTC, 9, most=4)
    assert shown(first) == expected[:1]
    rest = agenda.agenda(store, identity, replace(wanted, after=first.after), UTC, 9)
    assert shown(rest) == expected[1:]


def test_only_what_one_may_see(store: Store, identity: Identity, add: Callable[..., str]) -> None:
    add("a", cronExpression="0 14 * * *")
    add("c", projectId="two", cronExpression="0 14 * * *")
    wanted = agenda.Wanted(NOON, NOON + 86400)
    bob = Identity("x", "bob", roles={"two": "VIEWER"})
    assert shown(agenda.agenda(store, bob, wanted, UTC, 9)) == ["c 15 14:00"]
    assert shown(agenda.agenda(store, Identity("y", "eve"), wanted, UTC, 9)) == []
    with pytest.raises(NotFoundError):
        agenda.agenda(store, bob, replace(wanted, project_id="one"), UTC, 9)


def test_a_zone_that_is_gone_takes_nothing_else_with_it(
    store: Store, identity: Identity, add: Callable[..., str]
) -> None:
    lost = add("lost", cronExpression="0 14 * * *", cronTimezone="Europe/Berlin")
    add("a", cronExpression="0 14 * * *")
    store.execute("UPDATE timers SET timezone = 'Mars/Olympus' WHERE task_id = ?", (lost,))
    assert shown(agenda.agenda(store, identity, agenda.Wanted(NOON, NOON + 86400), UTC, 9)) == ["a 15 14:00"]


@pytest.mark.parametrize("cursor", ["x", "1-x", "1", "-1-01J8ZWXQ1572KC6XGE7T74PT4P:0", "1-" + "A" * 26])
def test_a_cursor_of_elsewhere(cursor: str) -> None:
    with pytest.raises(InvalidInputError, match="cursor"):
        agenda.decode_cursor(cursor)
