"""What is due has its turn however many executions are waiting to be started."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any

from ctrl_exec.common.log import Log
from ctrl_exec.scheduler.task_clock import TaskClock
from ctrl_exec.tasks.store import Store
from tests.support.timetable import NS, TimetableOf
from tests.unit.tasks.conftest import Clock

NOON = 1_768_478_400
A_START_NS = 300_000_000


class Busy:
    """Executions that wait, each of which takes its time to be started; no news."""

    def __init__(self, clock: Clock, count: int) -> None:
        self.clock = clock
        self.left = count
        self.news = self

    def start_waiting(self, is_pressed: Callable[[], bool]) -> bool:
        """As the scheduler's."""
        while self.left:
            self.left -= 1
            self.clock.now_ns += A_START_NS
            if is_pressed():
                return True
        return False

    def next_moment_s(self) -> float | None:
        """Nothing waits for its time."""
        return None

    def look(self) -> None:
        """Nothing to tell."""

    def close(self) -> None:
        """Nothing to end."""


def test_what_is_due_has_its_turn_between_starts(tmp_path: Path) -> None:
    """Within the second, and the scheduler does not rest before all are started."""
    clock = Clock()
    clock.now_ns = NOON * NS
    busy: Any = Busy(clock, 100)
    with Store(str(tmp_path / "tasks.db"), clock_ns=clock) as store:
        tasks = TimetableOf(store)
        task = tasks.add("t", "*/10 * * * * *")
        of_clock = TaskClock(store, str(tmp_path / "wake"), UTC, Log("test", stream=io.StringIO()), busy)
        looks = 0
        while busy.left:
            of_clock.look(clock.now_ns / NS)
            looks += 1
            assert not busy.left or of_clock.rest_s(clock.now_ns / NS) == 0
        made = tasks.executions(task)
        assert [each.scheduled_ns for each in made] == [(NOON + each) * NS for each in (10, 20, 30)][
            : len(made)
        ]
        assert len(made) >= 2
        assert all(each.created_ns - (each.scheduled_ns or 0) < NS for each in made)
        assert looks <= len(made) + 2
        of_clock.close()
