"""Finding and ending what a process has started, each against real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from ctrl_exec.common.descendants import (
    Ending,
    Process,
    children_of,
    find_prctl,
    has_children,
    living,
    of_session,
    reap_others,
    send_signal,
    started_by,
)
from ctrl_exec.common.process import fork_child, wait_status
from tests.support.polling import eventually

IN_CHILD = 9


def in_child(work: Callable[[], None]) -> None:
    """Run the work in a child of its own, which has no other children; its assertions count."""

    def act() -> int:
        work()
        return IN_CHILD

    assert wait_status(fork_child(act)) == (IN_CHILD, 0)


def sleeper(*before: Callable[[], object]) -> int:
    """A child that does that, and then sleeps."""
    pid = os.fork()
    if pid == 0:
        for each in before:
            each()
        os.execv("/bin/sleep", ["sleep", "60"])
    return pid


def leave() -> None:
    """Go on in a child, the parent of which ends."""
    if os.fork():
        os._exit(0)


def is_gone(pid: int) -> bool:
    """Whether the process lives no more."""
    return all(each.pid != pid for each in living())


def the(pid: int) -> Process:
    """That process."""
    return next(each for each in living() if each.pid == pid)


def test_children_are_seen_and_zombies_are_not():
    def work() -> None:
        assert not has_children()
        pid = sleeper()
        assert has_children()
        assert children_of(os.getpid()) == {pid}
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: is_gone(pid))
        assert children_of(os.getpid()) == {pid}
        assert has_children()
        reap_others(pid)  # the script's own status is its watcher's to take
        assert has_children()
        reap_others(None)
        assert not has_children()

    in_child(work)


def test_an_orphan_that_left_everything_is_found_below_a_subreaper():
    def work() -> None:
        assert find_prctl()(1)
        earlier = sleeper()
        script = sleeper(os.setsid, lambda: sleeper(os.setsid, leave))
        found = eventually(
            lambda: len(all_ := started_by(script, os.getpid(), frozenset({earlier}))) == 2 and all_
        )
        assert earlier not in {each.pid for each in found}
        assert script in {each.pid for each in found}
        ending = Ending(lambda: started_by(script, os.getpid(), frozenset({earlier})), 60)

        def ended() -> bool:
            reap_others(None)
            return ending.is_over()

        eventually(ended)
        assert not ending.has_given_up
        assert not is_gone(earlier)
        os.kill(earlier, signal.SIGKILL)

    in_child(work)


def test_who_ignores_term_is_killed_after_the_grace_also_when_it_multiplies():
    def work() -> None:
        def multiply() -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for _ in range(200):
                leave()
            os.execv("/bin/sleep", ["sleep", "60"])

        find_prctl()(1)
        script = os.fork()
        if script == 0:
            os.setsid()
            multiply()
        eventually(lambda: of_session(script) != [])
        ending = Ending(lambda: started_by(script, os.getpid()), 0.05)

        def ended() -> bool:
            over = ending.is_over()
            reap_others(None)
            return over and not has_children()  # one that forks faster than /proc is read is our child still

        eventually(ended)
        assert started_by(script, os.getpid()) == []

    in_child(work)


def test_a_stopped_process_takes_its_signal():
    pid = sleeper(os.setsid)
    eventually(lambda: the(pid).session == pid)
    os.kill(pid, signal.SIGSTOP)
    ending = Ending(lambda: of_session(pid), 60)
    assert wait_status(pid) == (-1, signal.SIGTERM)
    assert ending.is_over()


def test_a_later_process_of_the_same_number_is_not_hit():
    pid = sleeper()
    try:
        found = eventually(lambda: the(pid))
        send_signal(Process(pid, found.parent, found.group, found.session, found.started - 1), signal.SIGKILL)
        assert not is_gone(pid)
    finally:
        send_signal(found, signal.SIGKILL)
        assert wait_status(pid) == (-1, signal.SIGKILL)
    send_signal(found, signal.SIGKILL)  # gone already: no error


def test_one_that_cannot_be_ended_is_given_up():
    ending = Ending(lambda: [Process(2**22 + 1, 0, 0, 0, 0)], -100)
    assert ending.is_over()
    assert ending.has_given_up
