"""Schedulers as processes: tasks start by the clock, once, whoever is killed when."""

from __future__ import annotations

import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ctrl_exec.tasks.clock.wake import wake_schedulers
from ctrl_exec.tasks.execution import carriage
from ctrl_exec.tasks.execution.executions import find_execution
from ctrl_exec.tasks.models import Task
from tests.support.polling import eventually
from tests.support.processes import Running
from tests.support.stepped_clock import SteppedClock
from tests.support.timetable import NS, TimetableOf, open_timetable


class Clockhouse:
    """An instance with tasks and any number of schedulers."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state = home / "state"
        self.state.mkdir()
        (home / "etc").mkdir()
        self.conf = home / "etc" / "ctrl-exec.conf"
        self.conf.write_text(f"etc_dir = {home / 'etc'}\nstate_dir = {self.state}\nlog_target = stderr\n")
        self.running: list[Running] = []

    def start(self, env: Mapping[str, str] | None = None) -> Running:
        """Another scheduler."""
        log = self.home / f"scheduler-{len(self.running)}.log"
        scheduler = Running("ctrl-exec-scheduler", "--config", self.conf, log_path=log, env=env)
        self.running.append(scheduler)
        scheduler.wait_for("ACTION=scheduler-start")
        return scheduler

    def tasks(self) -> TimetableOf:
        """The tasks; their store is to be closed."""
        return open_timetable(self.state)

    def wake(self) -> None:
        wake_schedulers(str(self.state / "wake"))

    def end(self) -> None:
        for scheduler in self.running:
            scheduler.stop()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Clockhouse]:
    made = Clockhouse(tmp_path)
    try:
        yield made
    finally:
        made.end()


def starts(tasks: TimetableOf, task: Task) -> int:
    return sum(reason == "START" for _, reason in tasks.judged(task))


@pytest.mark.long
def test_without_tasks_there_is_no_database(house: Clockhouse) -> None:
    """An instance that never had a task gets none from its scheduler; the first task is noticed."""
    scheduler = house.start()
    house.wake()
    metrics = house.state / "metrics" / "ctrl-exec-scheduler.json"
    eventually(lambda: '"rounds"' in metrics.read_text())
    assert not (house.state / "tasks.db").exists()
    tasks = house.tasks()
    with tasks.store:
        task = tasks.add("each second", "* * * * * *")
        house.wake()
        eventually(lambda: starts(tasks, task) >= 2)
    assert scheduler.stop() == 0
    assert list((house.state / "wake").iterdir()) == []


def test_changes_are_noticed_while_it_sleeps(house: Clockhouse) -> None:
    """With nothing due for months it is woken by what changes, and started tasks go on after a reload."""
    tasks = house.tasks()
    with tasks.store:
        tasks.add("yearly", "0 0 1 1 *")
        scheduler = house.start()
        task = tasks.add("each second", "* * * * * *")
        house.wake()
        eventually(lambda: starts(tasks, task) >= 1)
        task = tasks.change(task, enabledFg=False)
        house.wake()
        eventually(lambda: tasks.judged(task)[-1][1] == "DISABLED")
        scheduler.process.send_signal(1)
        scheduler.wait_for("ACTION=reload RESULT=ok")
        task = tasks.change(task, enabledFg=True)
        house.wake()
        eventually(lambda: tasks.judged(task)[-1][1] == "START")
        task = tasks.change(task, scheduledFg=False)
        house.wake()
        eventually(lambda: "ACTION=task-due" in scheduler.log())
    assert "ACTION=task-clock" not in scheduler.log()


def check_records(tasks: TimetableOf, made: list[Task], period_s: int) -> None:
    """Every due time from the task's beginning to the last that was judged has one record."""
    for task in made:
        judged = tasks.judged(task)
        first = task.created_ns // NS // period_s * period_s + period_s
        assert max(Counter(due for due, _ in judged).values()) == 1
        assert [due for due, _ in judged] == list(range(first, judged[-1][0] + 1, period_s))


def test_two_at_one_database(house: Clockhouse) -> None:
    """Neither starts what the other has started; together they miss nothing."""
    tasks = house.tasks()
    with tasks.store:
        made = [tasks.add(f"t{number}", "* * * * * *") for number in range(5)]
        schedulers = [house.start(), house.start()]
        eventually(lambda: all(starts(tasks, task) >= 3 for task in made))
        for scheduler in schedulers:
            assert scheduler.stop() == 0
        check_records(tasks, made, 1)


def kill_and_start(house: Clockhouse, rounds: int, seed: int) -> None:
    tasks = house.tasks()
    generator = random.Random(seed)
    with tasks.store:
        made = [
            tasks.add(f"t{number}", "*/2 * * * * *" if number % 2 else "* * * * * *") for number in range(10)
        ]
        alive = [house.start(), house.start()]
        for _ in range(rounds):
            until = time.monotonic() + generator.uniform(0.05, 1.2)
            eventually(lambda: time.monotonic() > until)  # noqa: B023 - asked at once
            victim = alive.pop(generator.randrange(len(alive)))
            victim.kill()
            alive.append(house.start())
        counts = [len(tasks.judged(task)) for task in made]
        eventually(
            lambda: all(len(tasks.judged(task)) > count for task, count in zip(made, counts, strict=True))
        )
        for scheduler in alive:
            assert scheduler.stop() == 0
        for number, task in enumerate(made):
            check_records(tasks, [task], 2 if number % 2 else 1)
        connection = sqlite3.connect(house.state / "tasks.db")
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


def test_killed_at_any_moment(house: Clockhouse) -> None:
    """kill -9 of one of two schedulers, again and again: nothing twice, every miss on record."""
    kill_and_start(house, rounds=3, seed=1)


@pytest.mark.long
def test_killed_a_hundred_times(house: Clockhouse) -> None:
    kill_and_start(house, rounds=100, seed=2)


@pytest.mark.long
def test_a_database_that_is_damaged(house: Clockhouse) -> None:
    """It is said once, the other duties go on, and so do the tasks once it is mended."""
    (house.state / "tasks.db").write_text("no database, " * 1000)
    scheduler = house.start()
    scheduler.wait_for("ACTION=task-clock ERROR=.*")
    metrics = house.state / "metrics" / "ctrl-exec-scheduler.json"
    eventually(lambda: '"rounds"' in metrics.read_text())
    (house.state / "tasks.db").unlink()
    tasks = house.tasks()
    with tasks.store:
        task = tasks.add("each second", "* * * * * *")
        eventually(lambda: starts(tasks, task) >= 1)
    assert scheduler.log().count("ACTION=task-clock") == 1


HOUR_S = 3600


@pytest.mark.long
def test_a_clock_that_is_set_while_it_runs(house: Clockhouse, tmp_path: Path) -> None:
    """An hour forward and back: nothing twice, each miss on record, what runs is not timed out by it."""
    clock = SteppedClock(tmp_path / "clock")
    tasks = house.tasks()
    with tasks.store:
        made = [
            tasks.add(policy, "*/10 * * * * *", missedRunPolicy=policy) for policy in ("SKIP", "RUN_ONCE")
        ]
        line = {"useShellFg": True, "commandLine": "sleep 600", "logOutput": "NEVER"}
        limit = {"timeout": 30, "timeoutDurationUnit": "MINUTE", "startDeadline": HOUR_S}
        runs = tasks.add(
            "long", "* * * * * *", localCommandTask=line, multipleExecutionPolicy="REJECT", **limit
        )
        scheduler = house.start(clock.environment)

        def running() -> list[str]:
            return [each.execution_id for each in tasks.executions(runs) if each.status == "RUNNING"]

        (under_way,) = eventually(running, timeout_s=60)
        tasks.change(runs, scheduledFg=False)
        eventually(lambda: all(starts(tasks, task) >= 1 for task in made), timeout_s=60)
        before_s = int(time.time())
        clock.set(HOUR_S)
        house.wake()
        eventually(
            lambda: all(tasks.judged(task)[-1][0] >= before_s + HOUR_S - 10 for task in made), timeout_s=60
        )
        clock.set(0)

        def goes_on(name: str) -> None:
            """By the time that it is now."""
            fresh = tasks.add(name, "* * * * * *")
            house.wake()
            eventually(lambda: starts(tasks, fresh) >= 3, timeout_s=60)

        goes_on("at once")
        known = [tasks.judged(task) for task in made]
        for task, judged in zip(made, known, strict=True):
            check_records(tasks, [task], 10)
            assert len([due for due, reason in judged if reason == "MISSED"]) >= HOUR_S // 10 - 3
            assert judged[-1][1] == "START"
        scheduler.kill()
        house.start(clock.environment)
        goes_on("after a kill")
        assert [tasks.judged(task) for task in made] == known
        assert running() == [under_way]
        assert carriage.abort(tasks.store, under_way) == "ABORTING"
        eventually(
            lambda: not running() and find_execution(tasks.store, under_way).status == "ABORTED", timeout_s=60
        )
