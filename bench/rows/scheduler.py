"""The scheduler with ten thousand tasks: its cost while nothing is due, and how late it starts what is."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from bench.row import SKIPPED, Group, Row, absent, measured
from bench.rows.executions import Client
from bench.series import Series, at_most, quantile
from bench.timing import cpu_of_tree_s
from ctrl_exec.tasks.clock.wake import wake_schedulers
from ctrl_exec.tasks.models import Token
from ctrl_exec.tasks.people.tokens import create_token
from tests.support.polling import eventually
from tests.support.timetable import NS, TimetableOf, open_timetable

if TYPE_CHECKING:
    from bench.daemon import Daemon
    from bench.session import Session

REST_S = 60  # a whole number of the minutes after which it looks by itself
AT_ONCE = 100
BEGUN_AT_ONCE = 10  # each is a process with one of its own; a hundred would measure the machine
AHEAD_S = 10  # more than it takes to make them: what is late then is the scheduler


def measure(session: Session) -> Iterable[Row]:
    """CPU in minutes in which nothing is due, then the latest of tasks that are due in the same second."""
    count = 2_000 if session.is_quick else 10_000
    home = session.work / "clock"
    for each in (home, home / "etc", home / "state"):
        each.mkdir()
    conf = home / "etc" / "ctrl-exec.conf"
    conf.write_text(
        f"etc_dir = {home / 'etc'}\nstate_dir = {home / 'state'}\nlog_target = stderr\napi_port = 0\n"
    )
    tasks = open_timetable(home / "state")
    with tasks.store:
        session.say(f"making {count} tasks")
        _fill(tasks, count)
        scheduler = session.daemon(
            session.launcher("ctrl-exec-scheduler", "--config", conf), "clock", announces=False
        )
        figures = home / "state" / "metrics" / "ctrl-exec-scheduler.json"
        eventually(
            lambda: json.loads(figures.read_text())["duties"].get("tasks", {}).get("timers", 0) >= count,
            timeout_s=120,
        )
        what = f"{count:,} tasks at rest: share of a core"
        if session.is_quick:
            yield absent("scheduler-rest", what, at_most(0.01), "takes minutes", SKIPPED)
        else:
            shares = Series(tuple(_share_of_a_core(scheduler) for _ in range(2)))
            yield measured(
                "scheduler-rest", what, ("share of a core", shares), "", at_most(0.01), floor=session.floor
            )
        yield _upcoming(session, tasks, session.launcher("ctrl-exec-api", "--config", conf), count)
        wake = str(home / "state" / "wake")
        for name, column, at_once, what in (
            ("scheduler-begin", "start_ns", BEGUN_AT_ONCE, "executed"),
            ("scheduler-late", "created_ns", AT_ONCE, "on record as a start"),
        ):
            numbers = range(session.sizes.rounds)
            latest = Series(
                tuple(_latest_s(tasks, wake, (f"{name} {each}", column, at_once)) for each in numbers)
            )
            yield measured(
                name, f"{count:,} tasks: seconds from due to {what}, the last of {at_once}",
                ("latest s", latest), "s", at_most(1), floor=session.floor,
            )  # fmt: skip
    scheduler.stop()


def _fill(tasks: TimetableOf, count: int) -> None:
    """Tasks that are due once a year, none of them within the next week."""
    generator = random.Random(count)
    with tasks.store.writing():
        for number in range(count):
            due = datetime.now(UTC) + timedelta(minutes=generator.randrange(7 * 1440, 300 * 1440))
            tasks.add(f"task {number}", f"{due.minute} {due.hour} {due.day} {due.month} *")


def _share_of_a_core(scheduler: Daemon) -> float:
    spent, begun = cpu_of_tree_s(scheduler.pid), time.monotonic()
    time.sleep(REST_S)
    return (cpu_of_tree_s(scheduler.pid) - spent) / (time.monotonic() - begun)


def _upcoming(session: Session, tasks: TimetableOf, argv: list[str], count: int) -> Row:
    """Pages of what is due next over all tasks, as the API gives them."""
    user = tasks.store.rows("SELECT user_id FROM users")[0]["user_id"]
    token = create_token(tasks.store, Token("", user, "personal", name="of the bench"))[1]
    api = session.daemon(argv, "clock-api", announces=False)
    client = Client(api.port(), token)
    times = [client.time_ms("GET", "/api/v1/upcoming?limit=100") for _ in range(50 + 3)][3:]
    api.stop()
    return measured(
        "scheduler-upcoming", f"{count:,} tasks: a page of the next 100 starts, p95 of {len(times)}",
        ("p95 ms", Series((quantile(times, 0.95),))), "ms", floor=session.floor,
        note=f"median {quantile(times, 0.5):.0f} ms, a connection each",
    )  # fmt: skip


def _latest_s(tasks: TimetableOf, wake: str, words: tuple[str, str, int]) -> float:
    """How long after its time the last of many that are due in the same second has that column."""
    name, column, count = words
    due = datetime.fromtimestamp(int(time.time()) + AHEAD_S, UTC)
    expression = f"{due.second} {due.minute} {due.hour} {due.day} {due.month} *"
    with tasks.store.writing():
        for each in range(count):
            tasks.add(f"{name} {each}", expression)
    wake_schedulers(wake)
    sql = f"SELECT count({column}) AS count, max({column}) AS last FROM executions WHERE scheduled_ns = ?"
    scheduled_ns = int(due.timestamp()) * NS

    def last_s() -> float | None:
        row = tasks.store.row(sql, (scheduled_ns,))
        return (row["last"] - scheduled_ns) / NS if row is not None and row["count"] == count else None

    found = eventually(last_s, timeout_s=60)
    assert found is not None
    return found


GROUP = Group("scheduler", "10,000 tasks at rest and due", measure)
