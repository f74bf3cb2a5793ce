"""Output of runs while they run: on record as it comes, whole whatever breaks."""

from __future__ import annotations

import os
import signal
import time

import pytest

from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec.operations.cancel import cancel
from ctrl_exec.operations.follow import follow
from ctrl_exec.operations.run import RunReport, RunRequest
from tests.integration.runs.dispatching import CALLER, Bench, killed_at
from tests.integration.runs.test_runs import kill_carrier
from tests.support.polling import eventually
from tests.support.processes import workers_of

LINES = "".join(f"line {number:08d}\n" for number in range(1, 41))


def output_so_far(live: Bench, reqid: str, host: str) -> str:
    report = live.status(reqid)
    return next(each.stdout for each in report.results if each.host == host)


def test_output_is_there_while_the_script_runs(live: Bench) -> None:
    """Status of a running run shows it; the end holds all of it, once."""
    started = live.run("tick-0", "tick-1", is_async=True)
    seen = eventually(lambda: output_so_far(live, started.reqid, "tick-1"))
    assert LINES.startswith(seen)
    assert not live.status(started.reqid).complete or seen == LINES
    done = live.wait_complete(started.reqid)
    assert [each.stdout for each in done.results] == [LINES, LINES]
    assert [each.state for each in done.results] == ["ok", "ok"]


def test_a_sync_run_answers_with_all_output(live: Bench) -> None:
    """As it always did; what each host said is told whole to who waits for it."""
    report = live.run("tick-0", "much", "older")
    assert [each.state for each in report.results] == ["ok", "ok", "ok"]
    assert report.results[0].stdout == LINES
    assert len(report.results[1].stdout) == 3_000_000 + 3 * 14
    assert live.status(report.reqid) == report


def test_a_run_that_is_silent_for_too_long_shows_what_it_said(live: Bench) -> None:
    """The answer holds the output so far, and the run goes on."""
    report = live.run("begun", "tick-0", read_timeout_s=3)
    begun, tick = report.results
    assert (begun.state, begun.stdout, report.complete) == ("running", "begun\n", False)
    assert "timeout" in begun.error
    assert (tick.state, tick.stdout) == ("ok", LINES)
    assert live.dispatcher().results.is_carried(report.reqid)


def test_a_followed_line_comes_soon(live: Bench) -> None:
    """Long before the script ends, in order, each once, whole."""
    started = live.run("tick-0", "tick-1", "tick-2", is_async=True)
    texts: dict[str, list[tuple[float, str]]] = {}
    for event in follow(live.dispatcher(), CALLER, started.reqid):
        if event.kind == "stdout":
            texts.setdefault(event.host, []).append((time.monotonic(), event.text))
    for told in texts.values():
        assert "".join(text for _, text in told) == LINES
        assert all(text.endswith("\n") for _, text in told)
        assert len(told) > 1, "it came while the script ran"


def test_a_stream_that_breaks_again_and_again_is_taken_up_where_it_broke(live: Bench) -> None:
    """Nothing is lost and nothing doubled, and the other hosts do not notice."""
    report = live.run("break-0", "break-1", "break-2", "tick-0")
    assert report.counts == {"ok": 4}
    assert [each.stdout for each in report.results] == [LINES] * 4
    asked = [each["path"] for each in live.fleet.requests("break-0") if report.reqid in each["path"]]
    assert asked
    assert all("stream=1" in path for path in asked)


@pytest.mark.parametrize("live", ["fresh"], indirect=True)
def test_base64_is_put_together_from_pieces(live: Bench) -> None:
    """Exact bytes, also over broken connections."""
    import base64

    report = live.run("break-0", encoding="base64")
    assert base64.b64decode(report.results[0].stdout) == LINES.encode()


@pytest.mark.parametrize("live", ["warm"], indirect=True)
def test_a_killed_fan_out_worker_costs_nothing(live: Bench) -> None:
    """What it carried is asked for again at once, from where it was."""
    started = live.run("tick-0", "tick-1", "tick-2", is_async=True)
    eventually(lambda: output_so_far(live, started.reqid, "tick-0"))
    for pid in workers_of(os.getpid()):
        os.kill(pid, signal.SIGKILL)
    done = live.wait_complete(started.reqid)
    assert [each.stdout for each in done.results] == [LINES] * 3
    assert done.counts == {"ok": 3}


def test_a_killed_carrier_costs_nothing(live: Bench) -> None:
    """Whoever asks goes on from what is on record, also when the last line of the log was torn."""
    started = live.run("tick-0", "tick-1", is_async=True)
    eventually(lambda: output_so_far(live, started.reqid, "tick-0"))
    kill_carrier(live)
    eventually(lambda: not live.dispatcher().results.is_carried(started.reqid))
    with (live.runs / f"{started.reqid}.events").open("ab") as log:
        log.write(b'{"out": "tick-0", "stream": "stdout", "text": "li')
    events = list(follow(live.dispatcher(), CALLER, started.reqid))
    done = live.status(started.reqid)
    assert [each.stdout for each in done.results] == [LINES, LINES]
    assert done.counts == {"ok": 2}
    for host in ("tick-0", "tick-1"):
        assert "".join(each.text for each in events if each.host == host and each.kind == "stdout") == LINES


@pytest.mark.parametrize("live", ["fresh"], indirect=True)
def test_killed_between_any_two_notes_of_output(live: Bench) -> None:
    """Before and after a piece is on record: it is there once in the end."""
    for point, count in (("before journal.note_output", 3), ("after journal.note_output", 3)):
        killed_at(live, point, RunRequest(("tick-1",), f"job-{count}"), count=count)
    for reqid in live.reqids():
        done = live.wait_complete(reqid)
        assert done.results[0].stdout == LINES, done


def test_output_beyond_the_limit_of_a_run_keeps_both_ends(live: Bench) -> None:
    """What comes piece by piece is cut as what comes whole, and the rest is counted."""
    live.settings["max_run_output"] = 100_000
    report = live.run("much", "tick-0")
    much, tick = report.results
    assert much.stdout.startswith("x" * 1000)
    assert much.stdout.endswith("line 00000003\n")
    assert len(much.stdout) + much.truncated[0] == 3_000_000 + 3 * 14
    assert len(much.stdout) <= 200_000
    assert tick.stdout == LINES
    assert live.status(report.reqid) == report


@pytest.mark.parametrize("live", ["fresh"], indirect=True)
def test_an_agent_that_cannot_stream_tells_its_output_at_the_end(live: Bench) -> None:
    """Of the version before, and of the Perl system."""
    started = live.run("elder", "older", "tick-0", is_async=True)
    events = list(follow(live.dispatcher(), CALLER, started.reqid))
    assert [each.text for each in events if each.host == "elder" and each.kind == "stdout"] == ["late\n"]
    assert [each.text for each in events if each.host == "older" and each.kind == "stdout"] == ["ok\n"]
    assert live.status(started.reqid).counts == {"ok": 3}


def noted(live: Bench, host: str) -> object:
    return live.dispatcher().registry.contact(host).get("features")


def test_who_cannot_stream_is_told_by_its_answer_and_remembered(live: Bench) -> None:
    """On the host's result and its last event, from then on at the start; not where there was no output."""
    late = "older agent: its output came at the end"
    registry, hosts = live.dispatcher().registry, ("late", "late-older", "late-silent", "brief")
    registry.note_contact("brief", features=["async", "result"])
    registry.note_contact("late", features=["async", "stream"])
    assert (noted(live, "late"), noted(live, "late-older")) == (["async", "stream"], None)
    started = live.run(*hosts, is_async=True)
    events = list(follow(live.dispatcher(), CALLER, started.reqid))
    told = {each.host: each.as_json().get("note") for each in events if each.kind == "exit"}
    assert told == {"late": late, "late-older": late, "late-silent": None, "brief": None}
    shown = {each["host"]: each.get("note") for each in live.status(started.reqid).status_json()["results"]}
    assert shown == told
    assert noted(live, "late") == ["async"]
    assert noted(live, "late-older") == noted(live, "late-silent") == ["none"]
    assert noted(live, "brief") == ["async", "result", "stream"]
    again = next(follow(live.dispatcher(), CALLER, started.reqid))
    assert list(again.facts["notes"]) == ["late", "late-older", "late-silent"]


@pytest.mark.parametrize("live", ["fresh"], indirect=True)
def test_a_silent_host_is_told_to_run(live: Bench) -> None:
    """When the agent has begun it; who watches later, or the record, hears the same."""
    started = live.run("quiet", "node-00", is_async=True)
    events = list(follow(live.dispatcher(), CALLER, started.reqid))
    [begun] = [each for each in events if each.kind == "start" and each.host == "quiet"]
    assert begun.as_json() == {"id": begun.id, "event": "start", "host": "quiet"}
    for number, event in enumerate(events[:-1]):
        again = list(follow(live.dispatcher(), CALLER, started.reqid, event.id))
        assert again == events[number + 1 :]
    assert list(follow(live.dispatcher(), CALLER, started.reqid)) == events


def test_a_refusal_makes_no_agent_an_older_one(live: Bench) -> None:
    """Nor does an agent that is not there."""
    report = live.run("refuses", "node-00")
    assert [(each.state, each.note) for each in report.results] == [("refused", ""), ("ok", "")]
    assert noted(live, "refuses") is None


@pytest.mark.long
def test_a_run_whose_carrier_died_is_watched_live(live: Bench) -> None:
    """Its watcher has it carried on by a process that stays, and obeys a cancel."""
    started = live.run("endless", "silent", is_async=True)
    eventually(lambda: live.status(started.reqid).results[1].state == "running")
    kill_carrier(live)
    results = live.dispatcher().results
    eventually(lambda: not results.is_carried(started.reqid))
    events = follow(
        live.dispatcher(), CALLER, started.reqid, (live.runs / f"{started.reqid}.events").stat().st_size
    )
    lines = 0
    while lines < 25:
        event = next(events)
        lines += event.text.count("\n")
        assert results.is_carried(started.reqid)
    report = live.status(started.reqid)
    assert (report.state, report.complete) == ("running", False)
    assert [each.state for each in report.results] == ["running", "running"]
    assert cancel(live.dispatcher(), CALLER, started.reqid).has_ended
    rest = list(events)
    assert rest[-1].facts == {"state": "cancelled", "counts": {"cancelled": 2}}
    done = live.status(started.reqid)
    assert done.results[0].stdout.startswith("begun\nline 00000001\n")
    assert min(each.rtt_ms for each in done.results) >= 1000


@pytest.mark.parametrize("live", ["fresh"], indirect=True)
def test_a_carrier_holds_little_of_what_it_passes_on(live: Bench) -> None:
    """Its memory does not grow with the output."""
    import resource

    live.run("tick-0")

    def work() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = live.run("much", is_async=True)
        list(follow(live.dispatcher(), CALLER, started.reqid))
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 30_000)

    assert wait_status(fork_child(work), timeout_s=60) == (0, 0)


def test_the_report_of_a_run_in_the_air_is_true(live: Bench) -> None:
    """States and counts of a running run."""
    started = live.run("tick-0", "silent", is_async=True)

    def probe() -> RunReport | None:
        found = live.status(started.reqid)
        return found if found.results[0].state == "ok" else None

    found = eventually(probe)
    assert found is not None
    assert (found.state, found.complete, found.pending) == ("running", False, ("silent",))
