"""Rolling runs: exactly the stated hosts run, whatever fails or dies."""

from __future__ import annotations

import pytest

from ctrl_exec.operations.follow import follow
from ctrl_exec.operations.rollout import Batch
from ctrl_exec.operations.run import RunReport, RunRequest
from tests.integration.runs.dispatching import CALLER, Bench, killed_at

NODES = tuple(f"node-{number:02d}" for number in range(20))  # 07 and 12 fail


def had(live: Bench, reqid: str) -> set[str]:
    """The hosts that were ever sent the run."""
    return {
        host
        for host in NODES
        if any(
            each["body"].get("reqid") == reqid and each["path"] == "/run"
            for each in live.fleet.requests(host)
        )
    }


def states(report: RunReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in report.results:
        found.setdefault(each.state, []).append(each.host)
    return found


@pytest.mark.parametrize(
    ("batch", "ran", "failed"),
    [
        (Batch(5), 10, 1), (Batch("25%", max_failures=1), 15, 2), (Batch(5, max_failures="10%"), 20, 2),
        (Batch(4, canary=2), 10, 1), (Batch(50), 20, 2), (Batch(1), 8, 1),
    ],
)  # fmt: skip
def test_it_stops_after_the_batch_with_too_many_failures(
    live: Bench, batch: Batch, ran: int, failed: int
) -> None:
    """What was not begun is cancelled, with the reason; what was begun ends."""
    report = live.run(*NODES, batch=batch)
    found = states(report)
    assert had(live, report.reqid) == set(NODES[:ran])
    assert found.get("cancelled", []) == list(NODES[ran:])
    assert len(found["failed"]) == failed
    assert report.complete
    assert report.state == ("cancelled" if ran < 20 else "completed")
    assert sum(report.batches, ()) == NODES
    assert sum(report.batches[: report.begun], ()) == NODES[:ran]
    for each in report.results[ran:]:
        assert each.error.startswith(f"not started: {failed} host{'s'[: failed > 1]} failed, at most ")
    assert live.status(report.reqid) == report
    assert live.held() == ()


def test_each_batch_is_over_before_the_next_begins(live: Bench) -> None:
    """Watchers see which hosts are begun when; locks are held for all of them throughout."""
    started = live.run("tick-0", "node-00", "node-01", is_async=True, batch=Batch(2, pause_s=0.2))
    seen: list[tuple[str, str]] = []
    for event in follow(live.dispatcher(), CALLER, started.reqid):
        if event.kind == "batch":
            if not seen:
                assert ("node-01", "job") in live.held()
            seen.append(("batch", ",".join(event.facts["hosts"])))
        elif event.kind == "exit":
            seen.append(("exit", event.host))
    assert seen[0] == ("batch", "tick-0,node-00")
    assert sorted(seen[1:3]) == [("exit", "node-00"), ("exit", "tick-0")]
    assert seen[3:] == [("batch", "node-01"), ("exit", "node-01")]


def test_a_detached_run_is_rolled_out_to_its_end(live: Bench) -> None:
    """Also one whose caller left in the middle, for a host was silent for too long."""
    report = live.run("tick-0", "elder", "node-00", "node-01", batch=Batch(2), read_timeout_s=0.5)
    assert not report.complete
    done = live.wait_complete(report.reqid)
    assert done.counts == {"ok": 4}
    assert done.begun == 2


@pytest.mark.parametrize("live", ["fresh"], indirect=True)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "point", ["before journal.note_batch", "after journal.note_batch", "in agents.run", "before journal.note"]
)
def test_killed_in_the_middle(live: Bench, point: str, count: int) -> None:
    """The hosts of the batches begun are asked; the others never had the run, and the record says so."""
    killed_at(live, point, RunRequest(NODES[:6], "job", batch=Batch(2)), count=count)
    [reqid] = live.reqids()
    live.status(reqid)
    done = live.wait_complete(reqid, ahead_s=15)  # an order may be on its way for so long
    sent = had(live, reqid)
    found = states(done)
    begun = set(sum(done.batches[: done.begun], ()))
    assert sent <= begun
    assert set(found.get("ok", [])) == sent
    assert set(found.get("cancelled", [])) == set(NODES[:6]) - begun
    assert set(found.get("lost", [])) == begun - sent
    assert done.state == ("interrupted" if len(begun) < 6 or "lost" in found else "completed")
    assert live.held() == ()
