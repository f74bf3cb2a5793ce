"""The server's account of its children: whose status is taken, who counts, who is ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from ctrl_exec.common.child import EXIT_CRASH
from ctrl_exec.common.children import Children
from ctrl_exec.common.process import fork_child, set_handler, wait_status
from ctrl_exec.common.slots import IDLE, LEAVING, READING, WORKING, Slots
from tests.support.polling import eventually


def fork_with(work: Callable[[], int | None]) -> int:
    return fork_child(work)


def has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def nobody_else() -> None:
    """There are no children of others."""


class Nursery:
    """Children with real processes, each in a state of its own choosing."""

    def __init__(self) -> None:
        self.slots = Slots(16)
        self.children = Children(self.slots)
        self.rows: dict[int, int] = {}

    def add(self, work: Callable[[], int | None], *, ip: str = "192.0.2.1", is_refuser: bool = False) -> int:
        row = self.slots.claim()
        assert row is not None
        pid = fork_with(work)
        self.rows[pid] = row
        self.children.add(pid, row, ip, is_refuser=is_refuser)
        return pid

    def add_waiting(self, state: int) -> int:
        """One that ends with 9 at SIGUSR1."""
        reading, writing = os.pipe()

        def work() -> int:
            set_handler(signal.SIGUSR1, lambda *_: os._exit(9))
            os.write(writing, b".")
            signal.pause()
            return 0

        pid = self.add(work)
        assert os.read(reading, 1) == b"."
        os.close(reading)
        os.close(writing)
        self.slots.set_state(self.rows[pid], state)
        return pid


def test_statuses_are_read_and_rows_freed() -> None:
    nursery = Nursery()
    pids = [nursery.add(lambda code=code: code, ip=f"192.0.2.{code}") for code in (3, 4)]  # type: ignore[misc]
    assert nursery.children.of_address("192.0.2.3") == 1
    for pid in pids:
        eventually(lambda pid=pid: has_ended(pid))  # type: ignore[misc]
    assert sorted(nursery.children.reap(nobody_else)) == [("192.0.2.3", 3), ("192.0.2.4", 4)]
    assert len(nursery.children) == 0
    assert nursery.children.of_address("192.0.2.3") == 0
    assert nursery.slots.live_count == 0


def test_a_child_that_is_not_ours_keeps_its_status() -> None:
    nursery = Nursery()
    foreign = fork_child(lambda: 7)
    eventually(lambda: has_ended(foreign))
    own = nursery.add(lambda: 3)
    eventually(lambda: has_ended(own))
    assert nursery.children.reap(nobody_else) == [("192.0.2.1", 3)]
    assert wait_status(foreign) == (7, 0)


def test_a_status_that_somebody_else_took_is_a_crash() -> None:
    nursery = Nursery()
    pid = nursery.add(lambda: 0)
    assert os.waitpid(pid, 0)[0] == pid
    assert nursery.children.reap(nobody_else) == [("192.0.2.1", EXIT_CRASH)]


def test_who_is_done_or_only_refuses_does_not_count() -> None:
    nursery = Nursery()
    done = nursery.add(lambda: 0)
    nursery.add(lambda: 0)
    nursery.add(lambda: 0, is_refuser=True)
    assert nursery.children.counted() == 2
    assert nursery.children.refuser_count() == 1
    nursery.slots.set_state(nursery.rows[done], LEAVING)
    assert nursery.children.counted() == 1
    eventually(lambda: nursery.children.reap(nobody_else) is not None and not len(nursery.children))


def test_only_those_that_wait_are_ended_and_the_young_are_spared() -> None:
    nursery = Nursery()
    working, idle, reading = (nursery.add_waiting(state) for state in (WORKING, IDLE, READING))
    nursery.children.evict_beyond(0)
    eventually(lambda: has_ended(idle))
    assert not has_ended(reading)  # it has only just begun to wait
    assert nursery.children.counted() == 2
    assert nursery.children.evict_one()
    eventually(lambda: has_ended(reading))
    assert not nursery.children.evict_one()
    assert not has_ended(working)
    nursery.slots.set_state(nursery.rows[working], READING)
    nursery.children.kill_waiting()
    eventually(lambda: has_ended(working))
    statuses = sorted(status for _, status in nursery.children.reap(nobody_else))
    assert statuses == [-9, 9, 9]
