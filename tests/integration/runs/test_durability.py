"""kill -9 of the carrier between any two steps: no stuck lock, no lost and no false record."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import time

import pytest

from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec.operations.run import RunReport, RunRequest
from ctrl_exec.operations.status import recover, sweep, unfinished
from tests.integration.runs.dispatching import Bench, killed_at
from tests.support.polling import eventually

REQUEST = RunRequest(("host-0001", "host-0002", "bad"), "job", args=("x",))
# in the order in which a run passes them
BEFORE_THE_RECORD = ["before locks.hold_within", "after locks.hold_within", "before results.begin"]
NEVER_SENT = ["after results.begin"]
SENT = ["in agents.run", "before journal.note", "after journal.note", "before journal.finish"]


@pytest.mark.parametrize("point", BEFORE_THE_RECORD)
def test_before_the_record_nothing_is_left(bench: Bench, point: str) -> None:
    """Killed before the record is durable: no host was contacted, no lock is held, nothing is listed."""
    before = len(bench.fleet.requests())
    killed_at(bench, point, REQUEST)
    assert bench.held() == ()
    assert unfinished(bench.dispatcher()) == ()
    assert len(bench.fleet.requests()) == before
    assert bench.run(*REQUEST.hosts).complete


@pytest.mark.parametrize("point", NEVER_SENT)
def test_between_record_and_first_contact(bench: Bench, point: str) -> None:
    """The record is there, says `interrupted`, and in the end that no agent has had the run."""
    killed_at(bench, point, REQUEST)
    assert bench.held() == ()
    [reqid] = bench.reqids()
    found = bench.status(reqid)
    assert (found.state, found.complete, found.counts) == ("interrupted", False, {"pending": 3})
    assert found.args == ("x",)
    later = bench.status(reqid, ahead_s=15)
    assert (later.state, later.complete, later.counts) == ("interrupted", True, {"lost": 3})
    assert {each.error for each in later.results} == {"the agent has no record of this run"}
    assert unfinished(bench.dispatcher()) == ()


# killed at the first note, an agent may not have had its order: that is sure after ten seconds only
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.long), 2, 3])
@pytest.mark.parametrize("point", SENT)
def test_after_the_first_contact_the_truth_is_found_again(bench: Bench, point: str, count: int) -> None:
    """Whatever was written when it died, the agents know the rest, and the record is completed with it."""
    if point == "before journal.finish" and count > 1:
        pytest.skip("a run finishes once")
    killed_at(bench, point, REQUEST, count=count)
    assert bench.held() == ()
    [reqid] = bench.reqids()
    first = bench.status(reqid)
    assert sum(first.counts.values()) == 3
    assert set(first.counts) <= {"ok", "failed", "pending"}
    assert first.complete == (not first.pending)
    found = bench.wait_complete(reqid)
    assert_true(bench, found)
    assert bench.wait_complete(reqid) == found


def assert_true(bench: Bench, report: RunReport) -> None:
    """Every host that was sent the run has its real result, and only the others are lost."""
    for result in report.results:
        # a request that was still on its way when its sender was killed never arrived
        had_it = any(each["body"].get("reqid") == report.reqid for each in bench.fleet.requests(result.host))
        expected = "failed" if result.host == "bad" else "ok"
        assert result.state == (expected if had_it else "lost"), result
        assert (result.stdout == "ok\n") == had_it
    assert report.state == ("interrupted" if "lost" in report.counts else "completed")


def test_after_the_end_nothing_changes(bench: Bench) -> None:
    """Killed after the last step the record is what it was."""
    killed_at(bench, "after journal.finish", REQUEST)
    [reqid] = bench.reqids()
    found = bench.status(reqid)
    assert (found.state, found.complete) == ("completed", True)
    assert recover(bench.dispatcher()).completed == 0


@pytest.mark.parametrize("left", ["done", "lock", "events", "all"])
def test_between_the_steps_of_finishing(bench: Bench, left: str) -> None:
    """The rewritten record decides; what its finisher had not yet removed is no second truth."""
    report = bench.run("host-0001")
    marker = next((bench.runs / "done").iterdir())
    if left in ("done", "all"):
        marker.unlink()
    if left in ("lock", "all"):
        (bench.runs / f"{report.reqid}.lock").touch()
    if left in ("events", "all"):
        (bench.runs / f"{report.reqid}.events").write_text(
            '{"result": {"host": "host-0001", "state": "failed"}}\n'
        )
    assert bench.status(report.reqid) == report
    recover(bench.dispatcher())
    assert unfinished(bench.dispatcher()) == ()
    assert not (bench.runs / f"{report.reqid}.lock").exists()
    if left == "all":
        assert not (bench.runs / f"{report.reqid}.events").exists()
    bench.dispatcher().results.sweep()
    assert marker.exists()
    assert bench.dispatcher().results.purge(int(time.time()) + 100_000) == 1
    assert [path for path in bench.runs.iterdir() if path.is_file()] == []


def test_many_recover_at_once(bench: Bench) -> None:
    """Scheduler, API and CLI may all look after a dead run at once: it is completed once, rightly."""
    killed_at(bench, "in agents.run", RunRequest(("@role=web",), "job"))
    [reqid] = bench.reqids()
    children = [fork_child(lambda: int(bench.status(reqid).reqid != reqid)) for _ in range(6)]
    assert [wait_status(pid, timeout_s=60) for pid in children] == [(0, 0)] * 6
    found = bench.wait_complete(reqid)
    assert len(found.results) == 5
    assert_true(bench, found)
    assert len(list((bench.runs / "done").iterdir())) == 1


def test_fifty_runs_in_flight_survive_the_death_of_their_carriers(bench: Bench) -> None:
    """50 carriers killed at once: every record is completed by one round after the agents are done."""
    registry = bench.dispatcher().registry
    slow = registry.get("slow")
    mark = os.urandom(3).hex()  # the agents are shared, and tell of all that was ever sent
    names = [f"slow-{mark}-{number:02d}" for number in range(50)]
    for name in names:
        registry.save(type(slow)(**{**vars(slow), "hostname": name}))

    def work(name: str) -> None:
        bench.run(name, script=name)

    children = [fork_child(lambda name=name: work(name)) for name in names]
    sent = eventually(
        lambda: len({each["body"].get("script") for each in bench.fleet.requests("slow")} & set(names)) == 50,
        timeout_s=60,
    )
    assert sent
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        wait_status(pid)
    assert bench.held() == ()
    assert len(bench.reqids()) == 50

    def all_done() -> bool:
        recover(bench.dispatcher())
        return not unfinished(bench.dispatcher())

    eventually(all_done, timeout_s=90, pause_s=0.5)
    reports = [bench.status(reqid) for reqid in bench.reqids()]
    assert {report.state for report in reports} == {"completed"}
    assert all(report.has_succeeded for report in reports)


@pytest.mark.long
def test_killed_at_random_moments(bench: Bench) -> None:
    """Carriers, sync and async, killed anywhere in time: every record whole, true, and ended in the end."""
    chance = random.Random(7)
    for turn in range(60):
        request = RunRequest(("host-0001", "host-0002", "bad"), f"job-{turn}", is_async=turn % 3 == 0)
        pid = fork_child(
            lambda request=request: int(
                not bench.run(*request.hosts, script=request.script, is_async=request.is_async)
            )
        )
        select.select([], [], [], chance.uniform(0, 0.06))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_status(pid)
    eventually(lambda: bench.held() == (), what="no lock is stuck")

    def all_ended() -> bool:
        recover(bench.dispatcher(ahead_s=20))
        return not unfinished(bench.dispatcher())

    eventually(all_ended, timeout_s=60)
    reqids = bench.reqids()
    requests = bench.fleet.requests()
    for reqid in reqids:
        found = bench.status(reqid)
        assert found.complete
        had_it = {
            each["host"] for each in requests if each["body"].get("reqid") == reqid and each["path"] == "/run"
        }
        for result in found.results:
            assert (result.state in ("ok", "failed")) == (result.host in had_it), (result, had_it)
    ours = [
        (each["host"], each["body"]["reqid"])
        for each in requests
        if each["path"] == "/run" and each["body"]["reqid"] in reqids
    ]
    assert len(ours) == len(set(ours)), "no host is asked twice to run the same"
    sweep(bench.dispatcher())
    later = time.time() + 7200
    bench.dispatcher().results.sweep(later)
    assert sorted(path.name for path in bench.runs.iterdir() if path.is_file()) == [
        f"{reqid}.json" for reqid in reqids
    ]
