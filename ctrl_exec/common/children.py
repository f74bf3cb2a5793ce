"""The children a server forked and has not reaped: how many count, who waits longest, who must go.

Owns their rows, the count by address, and the choice of whom to end for a newcomer. Forks nothing.
"""

from __future__ import annotations

import os
import signal
import time

from ctrl_exec.common.child import EXIT_CRASH, WAITING_STATES
from ctrl_exec.common.slots import IDLE, LEAVING, WORKING, Slots
from ctrl_exec.common.suppression import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_EVICTION_GRACE_MS = 250
"""A handshake or head in flight is no silence: only children that waited this long are ended for
the half, and younger ones only when no other room is left."""


class _Live:
    """One child."""

    __slots__ = ("index", "is_evicted", "is_refuser", "remote_ip")

    def __init__(self, index: int, remote_ip: str, is_refuser: bool) -> None:
        self.index = index
        self.remote_ip = remote_ip
        self.is_refuser = is_refuser
        self.is_evicted = False


class Children:
    """By pid, with their rows in the shared block."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._live: dict[int, _Live] = {}
        self._per_ip: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._live)

    def add(self, pid: int, index: int, remote_ip: str, *, is_refuser: bool) -> None:
        """Take note of a child just forked; a refuser only turns a client away."""
        self._live[pid] = _Live(index, remote_ip, is_refuser)
        self._per_ip[remote_ip] = self._per_ip.get(remote_ip, 0) + 1

    def indexes(self) -> tuple[int, ...]:
        """The rows of all of them."""
        return tuple(each.index for each in self._live.values())

    def of_address(self, remote_ip: str) -> int:
        """How many serve that address."""
        return self._per_ip.get(remote_ip, 0)

    def refuser_count(self) -> int:
        """How many only turn a client away."""
        return sum(each.is_refuser for each in self._live.values())

    def counted(self) -> int:
        """How many count towards the limit: not refusers, nor those that end by themselves or are ended."""
        state = self._slots.state
        return sum(
            not (each.is_refuser or each.is_evicted) and state(each.index) != LEAVING
            for each in self._live.values()
        )

    # -- the dead --------------------------------------------------------------------------------

    def reap(self, tend: Callable[[], None]) -> list[tuple[str, int]]:
        """Take the statuses of our own children that ended, of no others: those are for `tend` to take,
        which is called where there may be one.

        Shape: (remote address, exit code or negative signal) of each.
        """
        ended: list[tuple[str, int]] = []
        while True:
            try:
                # looks without taking: a status that is another's to read must stay
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if found is None and ended:
                return ended
            if found is None or found.si_pid not in self._live:
                break
            self._bury(found.si_pid, ended)
        tend()
        # a child that is not ours waits first in line, or we were woken and none is there because
        # somebody else took its status: ask for each
        for pid in list(self._live):
            self._bury(pid, ended)
        return ended

    def _bury(self, pid: int, ended: list[tuple[str, int]]) -> None:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # somebody else took its status
            found, status = pid, EXIT_CRASH << 8
        if found != pid:
            return
        dead = self._live.pop(pid)
        self._slots.release(dead.index)
        left = self._per_ip[dead.remote_ip] - 1
        if left:
            self._per_ip[dead.remote_ip] = left
        else:
            del self._per_ip[dead.remote_ip]
        ended.append((dead.remote_ip, os.waitstatus_to_exitcode(status)))

    # -- those that only wait for their client ------------------------------------------------------

    def _waiting(self) -> list[tuple[int, int, _Live]]:
        """(since when in ms, pid, child) of those that wait for their client, longest first."""
        found = []
        for pid, each in self._live.items():
            state = self._slots.state(each.index)
            if state == WORKING:
                each.is_evicted = False  # it had gone on before the signal came
            elif state in WAITING_STATES and not each.is_evicted:
                found.append((self._slots.since_ms(each.index), pid, each))
        found.sort(key=lambda entry: entry[0])
        return found

    def evict_beyond(self, count: int) -> None:
        """End the longest waiting until `count` of them are left, sparing those that just began."""
        waiting = self._waiting()
        latest_ms = int(time.monotonic() * 1000) - _EVICTION_GRACE_MS
        for since_ms, pid, child in waiting[: max(0, len(waiting) - count)]:
            if since_ms <= latest_ms or self._slots.state(child.index) == IDLE:
                self._evict(pid, child)

    def evict_one(self) -> bool:
        """End the longest waiting one, however young; False if none waits."""
        for _, pid, child in self._waiting():
            self._evict(pid, child)
            return True
        return False

    def _evict(self, pid: int, child: _Live) -> None:
        child.is_evicted = True
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)

    def kill_waiting(self) -> None:
        """At the very end: those that wait for a client are ended, those at work are let go."""
        for pid, child in self._live.items():
            if self._slots.state(child.index) in WAITING_STATES:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
