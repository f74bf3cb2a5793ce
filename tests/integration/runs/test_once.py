"""A run with an idempotency key, whose carrier is killed between any two steps: begun once, or not at all."""

from __future__ import annotations

import io
import os
import signal
import time
from typing import Any

import pytest

from ctrl_exec.common.errors import BusyError, ConflictError, DeniedError, LockedError, SpentKeyError
from ctrl_exec.common.log import Log
from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec.operations.once import Once
from ctrl_exec.operations.report import RunReport
from ctrl_exec.operations.run import RunRequest, run
from ctrl_exec.operations.status import purge
from ctrl_exec.services.idempotency import KeyUse
from ctrl_exec.services.transport import Interrupt
from tests.integration.runs.dispatching import CALLER, Bench, Stopping, StoppingDispatcher
from tests.support.polling import eventually

# how an agent is reached makes no difference here
pytestmark = pytest.mark.parametrize("bench", ["fresh"], indirect=True)

ONCE = Once("key-1", "POST", "/run", b"{}")
REQUEST = RunRequest(("host-0001", "host-0002"), "job")


class KeyedDispatcher(StoppingDispatcher):
    """Stops at the steps of a key too."""

    @property
    def idempotency_keys(self) -> Any:
        return Stopping(super().idempotency_keys, "keys", self.stop, wrap=("claim",))


def ask(bench: Bench, request: RunRequest = REQUEST, once: Once = ONCE, **facts: Any) -> RunReport:
    return run(bench.dispatcher(), CALLER, request, once=once, **facts)


def dispatched(bench: Bench) -> set[str]:
    """The ids of the runs of this test that have reached an agent."""
    known = set(bench.reqids())
    sent = (each for each in bench.fleet.requests() if each["path"] == "/run")
    return {each["body"]["reqid"] for each in sent} & known


POINTS = [
    "before keys.claim", "after keys.claim", "before locks.hold_within", "after locks.hold_within", "before results.begin",
    "after results.begin", "before journal.settle", "after journal.settle", "before agents.run", "in agents.run",
    "before journal.finish", "after journal.finish",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_step_it_is_begun_once_at_most(bench: Bench, point: str) -> None:
    """Whoever asks again begins it if nobody has, and joins it if somebody has, also when that one is dead."""
    reading, writing = os.pipe()

    def work() -> None:
        def stop(at: str) -> None:
            if at == point:
                os.write(writing, b"1")
                signal.pause()

        dispatcher = KeyedDispatcher(
            bench.config, Log("test", stream=io.StringIO()), environment={}, clock=lambda: int(time.time())
        )
        dispatcher.stop = stop
        run(dispatcher, CALLER, REQUEST, once=ONCE)

    pid = fork_child(work)
    os.close(writing)
    arrived = os.read(reading, 1)
    os.close(reading)
    assert arrived == b"1", f"the run ended before {point}"
    os.kill(pid, signal.SIGKILL)
    assert wait_status(pid) == (-1, signal.SIGKILL)
    before = bench.reqids()
    reports = [ask(bench) for _ in range(2)]
    assert {each.reqid for each in reports} == set(bench.reqids())
    assert len(bench.reqids()) == 1
    assert reports[1].joined
    assert reports[0].joined is bool(before)
    assert len(dispatched(bench)) <= 1
    if not before:
        assert reports[0].has_succeeded


def test_the_same_answer_as_long_as_it_is_known(bench: Bench) -> None:
    """Output, states and id are those of the first time; nothing is sent to any agent."""
    first = ask(bench)
    count = len(bench.fleet.requests())
    again = ask(bench)
    assert again.run_json() == first.run_json()
    assert (first.joined, again.joined) == (False, True)
    assert len(bench.fleet.requests()) == count


def test_joining_a_run_that_goes_on(bench: Bench) -> None:
    """The one who joins gets the whole answer when it is there, or what is known when patience ends."""
    slow = RunRequest(("slow",), "job", is_async=True)
    begun = ask(bench, slow)
    joined = ask(bench, slow)
    assert (joined.reqid, joined.joined, joined.complete) == (begun.reqid, True, False)
    waited = run(bench.dispatcher(), CALLER, RunRequest(("slow",), "job"), once=ONCE)
    assert (waited.reqid, waited.complete, waited.results[0].stdout) == (begun.reqid, True, "slow\n")
    endless = RunRequest(("endless",), "job", is_async=True, read_timeout_s=0.2)
    other = Once("key-2", "POST", "/run", b"{}")
    begun = ask(bench, endless, other)
    impatient = run(
        bench.dispatcher(), CALLER, RunRequest(("endless",), "job", read_timeout_s=0.2), once=other
    )
    assert (impatient.reqid, impatient.complete) == (begun.reqid, False)


def test_a_refused_run_leaves_its_key_free(bench: Bench) -> None:
    """Another run holds the script: the same key may try again, and then begins it."""
    with bench.dispatcher().locks.hold(["host-0001"], "job"), pytest.raises(LockedError):
        ask(bench)
    assert bench.reqids() == []
    assert ask(bench).has_succeeded


def test_another_body_and_another_caller(bench: Bench) -> None:
    first = ask(bench)
    with pytest.raises(ConflictError):
        ask(bench, once=Once("key-1", "POST", "/run", b"{1}"))
    other = type(CALLER)("somebody-else", via="cli", auth="claimed")
    second = run(bench.dispatcher(), other, REQUEST, once=ONCE)
    assert second.reqid != first.reqid


def test_the_hook_is_asked_before_the_key(bench: Bench) -> None:
    """Who may not run it learns nothing of what a key stands for."""
    ask(bench)
    hook = bench.home / "hook"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    bench.settings["auth_hook"] = hook
    with pytest.raises(DeniedError):
        ask(bench)
    with pytest.raises(DeniedError):
        ask(bench, once=Once("key-1", "POST", "/run", b"{1}"))


def test_a_purged_run_is_not_begun_again(bench: Bench) -> None:
    """Its id is told; after a day the key is free, and gone with the next purge."""
    bench.settings["run_retention"] = 60
    first = ask(bench)
    assert purge(bench.dispatcher(ahead_s=120)) == 1
    with pytest.raises(SpentKeyError) as caught:
        run(bench.dispatcher(ahead_s=120), CALLER, REQUEST, once=ONCE)
    assert caught.value.reqid == first.reqid
    purge(bench.dispatcher(ahead_s=90_000))
    assert {path.name for path in (bench.runs / "keys").iterdir()} == {"secret"}
    assert run(bench.dispatcher(ahead_s=90_000), CALLER, REQUEST, once=ONCE).has_succeeded


def test_who_waits_for_another_to_begin_may_leave(bench: Bench) -> None:
    """A client that hangs up, or a drain, ends the wait."""
    held = bench.dispatcher().idempotency_keys.claim(
        KeyUse("key-1", CALLER.username, CALLER.token, "POST", "/run", b"{}"),
        "a" * 16,
        exists=lambda _: False,
        wait=lambda _: True,
    )
    reading, writing = os.pipe()
    os.write(writing, b"1")
    with pytest.raises(BusyError):
        ask(bench, interrupt=Interrupt((reading,), lambda: True))
    held.withdraw()
    for fd in (reading, writing):
        os.close(fd)
    assert ask(bench).has_succeeded
    eventually(lambda: bench.held() == ())
