"""The clock on a real database: starts once, misses on record, changes noticed, whoever else is at work."""

from __future__ import annotations

import io
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctrl_exec.common.errors import BusyError, InvalidFieldsError
from ctrl_exec.common.log import Log
from ctrl_exec.tasks import store as store_module
from ctrl_exec.tasks.clock.clockwork import MOST_AT_ONCE, Clockwork
from ctrl_exec.tasks.clock.cron import parse_cron
from ctrl_exec.tasks.clock.timers import NEVER_S
from ctrl_exec.tasks.store import Store
from tests.support.timetable import NS, TimetableOf

NOON = int(datetime(2026, 1, 15, 12, tzinfo=UTC).timestamp())
HOUR = 3600


class Clock:
    """A clock that a test sets; the database's and the scheduler's."""

    def __init__(self) -> None:
        self.now_s = float(NOON)

    def __call__(self) -> int:
        return int(self.now_s * NS)


class Bench:
    """A database, its tasks, and schedulers at it."""

    def __init__(self, path: Path) -> None:
        self.path = path / "tasks.db"
        self.clock = Clock()
        self.store = self.opened()
        self.tasks = TimetableOf(self.store)
        self.text = io.StringIO()

    def opened(self) -> Store:
        return Store(str(self.path), clock_ns=self.clock)

    def clockwork(self, store: Store | None = None) -> Clockwork:
        """One that has read everything."""
        made = Clockwork(store or self.store, UTC, Log("test", stream=self.text))
        assert not made.refresh(self.clock.now_s)
        return made

    def at(self, minutes: float) -> float:
        """Set the clock to so many minutes after noon."""
        self.clock.now_s = NOON + minutes * 60
        return self.clock.now_s


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    with made.store:
        yield made


def test_when_a_timer_is_due_next_is_on_record(bench: Bench) -> None:
    """From the first reading on, moving with each start; a changed schedule is unknown until it was read."""
    task = bench.tasks.add("a", "*/5 * * * *")

    def noted() -> list[int]:
        return [row["next_s"] for row in bench.store.rows("SELECT next_s FROM timers")]

    assert noted() == [0]
    clockwork = bench.clockwork()
    assert noted() == [NOON + 300]
    assert len(clockwork.start_due(bench.at(5))) == 1
    assert noted() == [NOON + 600]
    bench.tasks.change(task, cronExpression="0 18 * * *")
    assert noted() == [0]
    clockwork.refresh(bench.at(6))
    assert noted() == [NOON + 6 * HOUR]
    bench.tasks.change(task, cronExpression="0 0 30 2 *")
    clockwork.refresh(bench.at(7))
    assert noted() == [NEVER_S]


def test_a_miss_is_told_to_who_wants_to_know(bench: Bench) -> None:
    """In the transaction that records it; a start that is made is no miss."""
    task = bench.tasks.add("t", "*/10 * * * *")
    notifier = {"notifier_id": "n", "project_id": task.project_id, "name": "n", "kind": "WEBHOOK"}
    bench.store.insert("notifiers", notifier | {"settings": "{}", "created_ns": 1, "updated_ns": 1})
    sql = "UPDATE tasks SET definition = json_set(definition, '$.taskNotifierMap', json(?))"
    bench.store.execute(sql, ('{"n": {"events": ["ON_MISSED"]}}',))
    clockwork = bench.clockwork()
    clockwork.start_due(bench.at(15))
    documents = [json.loads(row[0]) for row in bench.store.rows("SELECT document FROM notices")]
    assert [(each["event"], each["status"], each["reason"]) for each in documents] == [
        ("ON_MISSED", "SKIPPED", "MISSED")
    ]
    clockwork.start_due(bench.at(20))
    assert len(bench.store.rows("SELECT 1 FROM notices")) == 1


def minutes(found: list[tuple[int, str]]) -> list[tuple[int, str]]:
    return [((due_s - NOON) // 60, word) for due_s, word in found]


def test_a_start_at_its_time(bench: Bench) -> None:
    """A PENDING execution with its due time, its parameters and nobody who asked but the clock."""
    task = bench.tasks.add("t", "*/10 * * * *")
    clockwork = bench.clockwork()
    assert clockwork.next_due() == NOON + 600
    assert clockwork.start_due(bench.at(9.9)) == ()
    [started] = clockwork.start_due(bench.at(10))
    assert (started.status, started.trigger, started.task_id) == ("PENDING", "SCHEDULE", task.task_id)
    assert (started.scheduled_ns, started.created_ns) == ((NOON + 600) * NS, bench.clock())
    assert bench.tasks.executions() == [started]
    assert clockwork.start_due(bench.at(10.1)) == ()
    assert clockwork.next_due() == NOON + 1200
    assert "ACTION=task-due" in bench.text.getvalue()


def test_several_schedules_with_their_own_parameters_and_zones(bench: Bench) -> None:
    """A task may have many; what a schedule does not say comes from the defaults."""
    parameters = [
        {"name": "COUNTRY", "type": "TEXT", "defaultValue": "DE"},
        {"name": "COUNT", "type": "INTEGER", "defaultValue": 1},
        {"name": "NEEDED", "type": "TEXT", "required": True},
    ]
    schedules = [
        {
            "cronExpression": "30 13 * * *",
            "cronTimezone": "Europe/Berlin",
            "parameterMap": {"COUNT": 2, "NEEDED": "a"},
        },
        {"cronExpression": "30 12 * * *", "cronTimezone": "UTC", "parameterMap": {"COUNTRY": "US"}},
    ]
    bench.tasks.add("t", "45 12 * * *", parameters=parameters, schedules=schedules)
    clockwork = bench.clockwork()
    clockwork.start_due(bench.at(30))
    clockwork.start_due(bench.at(45))
    found = {
        each.timer_id.rpartition(":")[2]: each.parameter_map
        for each in bench.tasks.executions()
        if each.timer_id
    }
    assert found["1"] == {"COUNTRY": "DE", "COUNT": 2, "NEEDED": "a"}
    # what is required and missing is the execution's to say; it is a start that fails, not one that is lost
    assert found["2"] == {"COUNTRY": "US"}
    assert found["0"] == {}


def test_what_was_missed_is_on_record(bench: Bench) -> None:
    """A scheduler that comes back after half an hour."""
    skip = bench.tasks.add("skip", "*/10 * * * *")
    once = bench.tasks.add("once", "*/10 * * * *", missedRunPolicy="RUN_ONCE")
    off = bench.tasks.add("off", "*/10 * * * *", enabledFg=False)
    calendar = {"mode": "EXCLUDE", "dates": ["2026-01-15"]}
    holiday = bench.tasks.add("holiday", "*/10 * * * *", calendar=calendar)
    bench.at(35)
    assert len(bench.clockwork().start_due(bench.clock.now_s)) == 1
    assert minutes(bench.tasks.judged(skip)) == [(10, "MISSED"), (20, "MISSED"), (30, "MISSED")]
    assert minutes(bench.tasks.judged(once)) == [(10, "MISSED"), (20, "MISSED"), (30, "START")]
    assert minutes(bench.tasks.judged(off)) == [(10, "DISABLED"), (20, "DISABLED"), (30, "DISABLED")]
    assert minutes(bench.tasks.judged(holiday)) == [(10, "CALENDAR"), (20, "CALENDAR"), (30, "CALENDAR")]
    assert {each.status for each in bench.tasks.executions(skip)} == {"SKIPPED"}
    assert all(each.end_ns for each in bench.tasks.executions(skip))


def test_a_calendar_that_cannot_be_read(bench: Bench) -> None:
    """It is refused when the task is saved, not when a start is due."""
    with pytest.raises(InvalidFieldsError, match="BEGIN:VCALENDAR") as caught:
        bench.tasks.add("t", "0 9 * * *", calendar={"mode": "EXCLUDE", "ical": "DTSTART:20260101"})
    assert list(caught.value.fields) == ["calendar"]


def test_a_policy_that_refuses(bench: Bench) -> None:
    """One is under way still: the next start is skipped, and says why."""
    task = bench.tasks.add("t", "*/10 * * * *", multipleExecutionPolicy="REJECT")
    clockwork = bench.clockwork()
    clockwork.start_due(bench.at(10))
    assert clockwork.start_due(bench.at(20)) == ()
    assert minutes(bench.tasks.judged(task)) == [(10, "START"), (20, "POLICY")]


def test_changes_are_noticed(bench: Bench) -> None:
    """New, changed, switched off, without schedule, removed: after the next refresh."""
    clockwork = bench.clockwork()
    assert clockwork.next_due() is None
    task = bench.tasks.add("t", "*/10 * * * *")
    clockwork.refresh(bench.clock.now_s)
    assert clockwork.next_due() == NOON + 600
    clockwork.start_due(bench.at(10))
    task = bench.tasks.change(task, cronExpression="*/15 * * * *")
    clockwork.refresh(bench.at(11))
    assert clockwork.next_due() == NOON + 900
    task = bench.tasks.change(task, description="another")
    clockwork.refresh(bench.at(12))
    assert clockwork.next_due() == NOON + 900
    task = bench.tasks.change(task, enabledFg=False)
    clockwork.refresh(bench.at(13))
    assert clockwork.start_due(bench.at(15)) == ()
    assert minutes(bench.tasks.judged(task))[-1] == (15, "DISABLED")
    task = bench.tasks.change(task, scheduledFg=False)
    clockwork.refresh(bench.at(16))
    assert clockwork.next_due() is None
    assert len(clockwork) == 0
    bench.tasks.change(task, scheduledFg=True, enabledFg=True)
    clockwork.refresh(bench.at(17))
    assert clockwork.next_due() == NOON + 1800
    with bench.store.writing():
        bench.store.execute("DELETE FROM tasks")
    clockwork.refresh(bench.at(18))
    assert clockwork.next_due() is None


def test_a_change_that_was_not_read_yet(bench: Bench) -> None:
    """What is due of a schedule that is no more is not started."""
    task = bench.tasks.add("t", "*/10 * * * *")
    clockwork = bench.clockwork()
    bench.at(5)
    bench.tasks.change(task, cronExpression="*/15 * * * *")
    assert clockwork.start_due(bench.at(10)) == ()
    clockwork.refresh(bench.clock.now_s)
    assert clockwork.start_due(bench.at(15)) != ()
    assert minutes(bench.tasks.judged()) == [(15, "START")]


def test_a_timer_that_cannot_be_read(bench: Bench) -> None:
    """It is said once, the others go on, and it comes back when it is mended."""
    task = bench.tasks.add("broken", "*/10 * * * *")
    bench.tasks.add("good", "*/10 * * * *")
    with bench.store.writing():
        bench.store.execute("UPDATE timers SET timezone = 'Mars/Olympus' WHERE task_id = ?", (task.task_id,))
    clockwork = bench.clockwork()
    for _ in range(3):
        clockwork.refresh(bench.clock.now_s)
    assert bench.text.getvalue().count("Mars/Olympus") == 1
    assert len(clockwork) == 1
    bench.tasks.change(task, cronExpression="*/20 * * * *")
    clockwork.refresh(bench.clock.now_s)
    assert len(clockwork) == 2


def test_two_at_one_database(bench: Bench) -> None:
    """Each start is made once, whoever is first."""
    for number in range(5):
        bench.tasks.add(f"t{number}", "*/10 * * * *")
    with bench.opened() as other:
        one, two = bench.clockwork(), bench.clockwork(other)
        counts = []
        for minute in range(10, 70, 10):
            bench.at(minute)
            pair = (one, two) if minute % 20 else (two, one)
            counts.append([len(each.start_due(bench.clock.now_s)) for each in pair])
    assert counts == [[5, 0]] * 6
    assert set(Counter(bench.tasks.judged()).values()) == {5}


def test_a_busy_database_loses_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another writes for too long nothing starts; then all that was due is judged."""
    monkeypatch.setattr(store_module, "_BUSY_TIMEOUT_S", 0.05)
    task = bench.tasks.add("t", "*/10 * * * *", missedRunPolicy="RUN_ONCE")
    with bench.opened() as mine:
        clockwork = bench.clockwork(mine)
        other = sqlite3.connect(bench.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BusyError):
            clockwork.start_due(bench.at(10))
        assert clockwork.next_due() is None
        other.execute("ROLLBACK")
        other.close()
        clockwork.refresh(bench.at(21))
        assert len(clockwork.start_due(bench.clock.now_s)) == 1
    assert minutes(bench.tasks.judged(task)) == [(10, "MISSED"), (20, "START")]


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_clock_that_is_set(bench: Bench, is_restarted: bool) -> None:
    """An hour forward and back: nothing twice, the misses on record; more than three back: it was wrong."""
    task = bench.tasks.add("t", "*/20 * * * *")
    clockwork = bench.clockwork()

    def look(at_minutes: float) -> None:
        nonlocal clockwork
        bench.at(at_minutes)
        clockwork = bench.clockwork() if is_restarted else clockwork
        clockwork.refresh(bench.clock.now_s)
        clockwork.start_due(bench.clock.now_s)

    look(20)
    look(80)
    expected = [(20, "START"), (40, "MISSED"), (60, "MISSED"), (80, "START")]
    assert minutes(bench.tasks.judged(task)) == expected
    for back in (21, 40, 60, 79, 80):
        look(back)
    assert minutes(bench.tasks.judged(task)) == expected
    look(100)
    assert minutes(bench.tasks.judged(task)) == [*expected, (100, "START")]
    look(10_000)
    last = minutes(bench.tasks.judged(task))[-1]
    assert last == (10_000, "START")
    look(120.5)  # days back
    look(140)
    assert (140, "START") not in minutes(
        bench.tasks.judged(task)
    )  # it has a record: MISSED, from the wrong time
    assert max(Counter(bench.tasks.judged(task)).values()) == 1
    assert clockwork.next_due() == NOON + 160 * 60
    assert "set back by hours" in bench.text.getvalue()


def test_thousands_due_at_once(bench: Bench) -> None:
    """They are started in rounds, each one transaction, until there are none."""
    with bench.store.writing():
        for number in range(2 * MOST_AT_ONCE + 50):
            bench.tasks.add(f"t{number}", "0 13 * * *")
    clockwork = Clockwork(bench.store, UTC, Log("test", stream=bench.text))
    while clockwork.refresh(bench.clock.now_s):
        pass
    rounds = []
    bench.at(60)
    while (due := clockwork.next_due()) is not None and due <= bench.clock.now_s:
        rounds.append(len(clockwork.start_due(bench.clock.now_s)))
    assert rounds == [MOST_AT_ONCE, MOST_AT_ONCE, 50]


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["pass", "pass", "jump", "back", "die", "change"]),
            st.integers(0, 1),
            st.integers(1, 1500),
        ),
        max_size=25,
    )
)
def test_never_twice_and_every_miss_recorded(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    """Two schedulers that die and are started again, and a clock that is set: each due time has one record."""
    bench = Bench(tmp_path_factory.mktemp("bench"))
    with bench.store, bench.opened() as other:
        for store in (bench.store, other):
            store.connection.execute("PRAGMA synchronous = OFF")
        tasks = [
            bench.tasks.add("a", "*/5 * * * *"),
            bench.tasks.add("b", "*/7 * * * *", missedRunPolicy="RUN_ONCE"),
        ]
        stores = (bench.store, other)
        clockworks = [bench.clockwork(store) for store in stores]
        latest = bench.clock.now_s
        for kind, which, seconds in steps:
            if kind == "die":
                clockworks[which] = bench.clockwork(stores[which])
            elif kind == "change":
                tasks[0] = bench.tasks.change(tasks[0], description=str(seconds))
                clockworks[which].refresh(bench.clock.now_s)
            else:
                bench.clock.now_s += {"pass": seconds / 10, "jump": seconds, "back": -seconds}[kind]
            latest = max(latest, bench.clock.now_s)
            clockworks[which].start_due(bench.clock.now_s)
        bench.clock.now_s = latest
        clockworks[0].refresh(latest)
        clockworks[0].start_due(latest)
        for task, expression in zip(tasks, ("*/5 * * * *", "*/7 * * * *"), strict=True):
            due = [due_s for due_s, _ in bench.tasks.judged(task)]
            assert due == list(parse_cron(expression).moments(NOON, latest, UTC))
