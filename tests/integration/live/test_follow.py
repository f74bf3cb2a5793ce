"""Watching runs: everything once, in order, from any place on."""

from __future__ import annotations

import json

import pytest

from ctrl_exec.common.errors import DeniedError, UnknownRunError
from ctrl_exec.operations.follow import BEGINNING, RunEvent, follow
from ctrl_exec.operations.run import RunRequest
from ctrl_exec.services.transport import Interrupt
from tests.integration.runs.dispatching import CALLER, Bench, killed_at
from tests.support.polling import eventually


def watch(bench: Bench, reqid: str, after: int = BEGINNING, **how: object) -> list[RunEvent]:
    return list(follow(bench.dispatcher(), CALLER, reqid, after, **how))  # type: ignore[arg-type]


def shown(events: list[RunEvent]) -> list[tuple[str, str, str]]:
    return [(each.kind, each.host, each.text) for each in events]


def test_a_finished_run_is_told_from_its_record(bench: Bench) -> None:
    """Start, each host's output and end, the run's end; the log itself is gone by then."""
    report = bench.run("bad", "host-0001", args=("x",))
    events = watch(bench, report.reqid)
    assert events[0].kind == "start"
    assert events[0].facts["hosts"] == ["bad", "host-0001"]
    assert events[0].facts["args"] == ["x"]
    assert sorted(shown(events[1:-1])) == [
        ("exit", "bad", ""), ("exit", "host-0001", ""), ("stderr", "bad", "wrong\n"), ("stdout", "bad", "ok\n"),
        ("stdout", "host-0001", "ok\n"),
    ]  # fmt: skip
    assert events[-1].facts == {"state": "completed", "counts": {"failed": 1, "ok": 1}}
    [bad] = [each.result for each in events if each.kind == "exit" and each.host == "bad"]
    assert bad is not None
    assert (bad.exit, bad.stdout, bad.stderr) == (3, "", "")
    ids = [each.id for each in events]
    assert ids[:-1] == sorted(set(ids))
    assert ids[-1] == ids[-2]
    json.dumps([each.as_json() for each in events])


def test_from_any_place_on_comes_exactly_the_rest(bench: Bench) -> None:
    """Also from between the output and the end of one host, live or finished: the ids are the same."""
    started = bench.run("host-0001", "host-0002", "bad", is_async=True)
    live = watch(bench, started.reqid)
    again = watch(bench, started.reqid)
    assert live == again
    for number, event in enumerate(live[:-1]):
        assert watch(bench, started.reqid, event.id) == live[number + 1 :]
    assert [each.kind for each in watch(bench, started.reqid, live[-1].id)] == ["end"]
    assert [each.kind for each in watch(bench, started.reqid, 10**9)] == ["end"]


def test_hosts_are_told_as_they_end(bench: Bench) -> None:
    """The fast one's end is there before the slow one's, and the interrupt ends the watching alone."""
    started = bench.run("host-0001", "endless", is_async=True)
    seen: list[RunEvent] = []
    flag: list[int] = []
    for event in follow(
        bench.dispatcher(), CALLER, started.reqid, interrupt=Interrupt((), lambda: bool(flag)), idle_s=0.1
    ):
        seen.append(event)
        if event.kind == "exit":
            flag.append(1)
    assert ("exit", "host-0001", "") in shown(seen)
    assert "end" not in {each.kind for each in seen}
    assert bench.dispatcher().results.is_carried(started.reqid)


def test_silence_is_told_too(bench: Bench) -> None:
    """For those who must send something now and then."""
    started = bench.run("endless", is_async=True)
    events = follow(bench.dispatcher(), CALLER, started.reqid, idle_s=0.05)
    seen = [next(events) for _ in range(6)]
    assert [each.kind for each in seen if not each.host][:3] == ["start", "idle", "idle"]


def test_a_run_whose_carrier_was_killed_is_recovered_by_its_watcher(bench: Bench) -> None:
    """Nothing is lost or told twice, and the end comes."""
    killed_at(bench, "after journal.note", RunRequest(("host-0001", "host-0002", "bad"), "job"))
    [reqid] = bench.reqids()
    events = watch(bench, reqid)
    assert sorted(each.host for each in events if each.kind == "exit") == ["bad", "host-0001", "host-0002"]
    # a request that was still on its way when its sender was killed never arrived
    told = sorted(each.host for each in events if each.result and each.result.state in ("ok", "failed"))
    assert sorted(each.host for each in events if each.kind == "stdout") == told
    assert "host-0001" in told or "host-0002" in told or "bad" in told
    assert sum(events[-1].facts["counts"].values()) == 3


def test_large_output_is_told_in_pieces_and_its_log_is_kept(bench: Bench) -> None:
    """A watcher never has to hold all of it."""
    report = bench.run("large")
    assert len(report.results[0].stdout) == 300_003
    events = watch(bench, report.reqid)
    pieces = [each.text for each in events if each.kind == "stdout"]
    assert len(pieces) > 3
    assert "".join(pieces) == report.results[0].stdout
    assert bench.status(report.reqid) == report
    for number, event in enumerate(events[:-1]):
        assert watch(bench, report.reqid, event.id) == events[number + 1 :]


def test_many_watch_one_run(bench: Bench) -> None:
    """Each sees all of it."""
    started = bench.run("host-0001", "slow", is_async=True)
    watching = [follow(bench.dispatcher(), CALLER, started.reqid) for _ in range(5)]
    first = [next(each) for each in watching]
    assert {each.kind for each in first} == {"start"}
    rest = [list(each) for each in watching]
    assert all(each == rest[0] for each in rest)
    assert rest[0][-1].kind == "end"


def test_who_may_not_see_a_run_sees_none(bench: Bench) -> None:
    """The hook is asked before anything is told; an unknown run is one."""
    report = bench.run("host-0001")
    hook = bench.home / "etc" / "hook"
    hook.write_text('#!/bin/sh\n[ "$ENVEXEC_ACTION" = run ] || exit ${CODE:-1}\n')
    hook.chmod(0o755)
    bench.settings["auth_hook"] = hook
    with pytest.raises(UnknownRunError):
        follow(bench.dispatcher(), CALLER, report.reqid)
    hook.write_text("#!/bin/sh\nexit 2\n")
    with pytest.raises(DeniedError):
        follow(bench.dispatcher(), CALLER, report.reqid)
    del bench.settings["auth_hook"]
    with pytest.raises(UnknownRunError):
        follow(bench.dispatcher(), CALLER, "0123456789abcdef")


def test_what_older_agents_cannot_do_is_said_at_the_start(bench: Bench) -> None:
    """Once it is known what they can do."""
    from ctrl_exec.operations.ping import ping

    ping(bench.dispatcher(), CALLER, ("older", "host-0001"))
    report = bench.run("older", "host-0001")
    start = watch(bench, report.reqid)[0]
    assert list(start.facts["notes"]) == ["older"]
    assert eventually(lambda: bench.status(report.reqid).complete)
