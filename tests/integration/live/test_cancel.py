"""Cancelling runs: what ran ends, what was not begun never is, and each host's truth is told."""

from __future__ import annotations

import pytest

from ctrl_exec.common.errors import DeniedError, UnknownRunError
from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec.operations.cancel import CancelReport, cancel
from ctrl_exec.operations.follow import follow
from ctrl_exec.operations.rollout import Batch
from ctrl_exec.operations.status import recover
from tests.integration.runs.dispatching import CALLER, Bench
from tests.integration.runs.test_runs import kill_carrier
from tests.support.polling import eventually


def cancelled(live: Bench, reqid: str, **how: float) -> CancelReport:
    return cancel(live.dispatcher(), CALLER, reqid, **how)


def begun(live: Bench, reqid: str, host: str) -> None:
    eventually(lambda: any(each["body"].get("reqid") == reqid for each in live.fleet.requests(host)))


def test_a_running_run_is_cancelled(live: Bench) -> None:
    """Its scripts end, their output stays, the record says so, the locks are free."""
    started = live.run("endless", "silent", "node-00", is_async=True)
    eventually(lambda: live.status(started.reqid).results[0].stdout.count("line") >= 5)
    for at in (0, 1):  # one prints, one is silent
        eventually(lambda at=at: live.status(started.reqid).results[at].state == "running")
    report = cancelled(live, started.reqid)
    assert [(each.host, each.ended, each.state) for each in report.hosts] == [
        ("endless", True, "cancelled"), ("silent", True, "cancelled"), ("node-00", True, "ok"),
    ]  # fmt: skip
    assert (report.state, report.complete) == ("cancelled", True)
    done = live.wait_complete(started.reqid)
    assert done.state == "cancelled"
    assert [each.state for each in done.results] == ["cancelled", "cancelled", "ok"]
    assert done.results[0].exit == 126
    # five lines, one each 100 ms: it is the run's time, not that of the question for its end
    assert all(each.rtt_ms >= 500 for each in done.results[:2])
    assert done.results[0].stdout.startswith("begun\n")
    assert {each.host for each in done.cancels} == {"endless", "silent"}
    eventually(lambda: live.held() == ())
    told = [each.kind for each in follow(live.dispatcher(), CALLER, started.reqid)]
    assert "cancel" in told
    assert told[-1] == "end"
    assert not list(live.runs.glob("*.cancel"))


def test_a_sync_run_is_cancelled_by_another(live: Bench) -> None:
    """Who waits for it gets what there is."""

    def work() -> int:
        report = live.run("silent", "node-00")
        return 0 if [each.state for each in report.results] == ["cancelled", "ok"] else 1

    child = fork_child(work)
    reqid = eventually(live.reqids)[0]
    begun(live, reqid, "silent")
    assert cancelled(live, reqid).has_ended
    assert wait_status(child, timeout_s=30) == (0, 0)
    assert live.status(reqid).state == "cancelled"


def test_an_agent_that_cannot_is_said_to_be_too_old(live: Bench) -> None:
    """Its script goes on to its end, which is its truth; the run waits for it."""
    started = live.run("elder", "older", "silent", is_async=True)
    for host in ("elder", "older", "silent"):
        begun(live, started.reqid, host)
    report = cancelled(live, started.reqid)
    said = {each.host: (each.ended, each.error) for each in report.hosts}
    assert said["silent"] == (True, "")
    for host in ("elder", "older"):
        assert said[host] == (False, "agent too old to cancel")
    kill_carrier(live)  # of the Perl system's agent nobody will ever know
    found = eventually(lambda: (seen := live.status(started.reqid)).results[0].state == "ok" and seen)
    assert found.results[2].state == "cancelled"


def test_a_run_that_is_over_is_no_error(live: Bench) -> None:
    """Everything has ended already; nothing changes, nothing is left beside the record."""
    done = live.run("node-00", "node-07")
    report = cancelled(live, done.reqid)
    assert report.complete
    assert report.has_ended
    assert [each.state for each in report.hosts] == ["ok", "failed"]
    assert live.status(done.reqid) == done
    assert not list(live.runs.glob("*.cancel"))


def test_a_run_without_a_carrier_is_taken_over_for_it(live: Bench) -> None:
    """Whoever cancels it ends it."""
    started = live.run("silent", "endless", is_async=True)
    for host in ("silent", "endless"):
        begun(live, started.reqid, host)
    eventually(lambda: live.status(started.reqid).results[1].stdout)
    kill_carrier(live)
    eventually(lambda: not live.dispatcher().results.is_carried(started.reqid))
    assert cancelled(live, started.reqid).has_ended
    done = live.wait_complete(started.reqid)
    assert (done.state, done.counts) == ("cancelled", {"cancelled": 2})


def test_a_wish_survives_the_carrier(live: Bench) -> None:
    """Killed right before it obeys, the next one to look obeys."""
    started = live.run("silent", is_async=True)
    begun(live, started.reqid, "silent")
    kill_carrier(live)
    eventually(lambda: not live.dispatcher().results.is_carried(started.reqid))
    live.dispatcher().results.ask_to_cancel(started.reqid)
    eventually(lambda: recover(live.dispatcher()).completed)
    assert live.status(started.reqid).state == "cancelled"


def test_a_cancel_during_the_pause_between_batches(live: Bench) -> None:
    """No further batch is begun, and those hosts never had the run."""
    started = live.run("node-00", "node-01", "node-02", is_async=True, batch=Batch(1, pause_s=60))
    eventually(lambda: live.status(started.reqid).results[0].state == "ok")
    report = cancelled(live, started.reqid)
    assert [each.state for each in report.hosts] == ["ok", "cancelled", "cancelled"]
    assert report.complete
    done = live.status(started.reqid)
    assert done.state == "cancelled"
    assert done.results[1].error == "cancelled before it was started"
    assert not any(each["body"].get("reqid") == started.reqid for each in live.fleet.requests("node-01"))


def test_two_cancel_at_once(live: Bench) -> None:
    """Both are told the same."""
    started = live.run("silent", is_async=True)
    begun(live, started.reqid, "silent")
    children = [fork_child(lambda: int(not cancelled(live, started.reqid).has_ended)) for _ in range(3)]
    assert [wait_status(pid, timeout_s=30) for pid in children] == [(0, 0)] * 3


def test_who_may_not_cancel_a_run_does_not_know_it(live: Bench) -> None:
    """The hook is asked with action `cancel` and the submitter on record."""
    started = live.run("silent", is_async=True)
    hook = live.home / "etc" / "hook"
    hook.write_text('#!/bin/sh\n[ "$ENVEXEC_ACTION,$ENVEXEC_SUBMITTER" = cancel,tester ] && exit 3\nexit 2\n')
    hook.chmod(0o755)
    live.settings["auth_hook"] = hook
    with pytest.raises(UnknownRunError):
        cancelled(live, started.reqid)
    hook.write_text("#!/bin/sh\nexit 2\n")
    with pytest.raises(DeniedError):
        cancelled(live, started.reqid)
    assert not list(live.runs.glob("*.cancel"))
    del live.settings["auth_hook"]
    with pytest.raises(UnknownRunError):
        cancelled(live, "0123456789abcdef")
    assert cancelled(live, started.reqid).has_ended
