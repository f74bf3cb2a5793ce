"""Output told piece by piece: on record at once, composed in the end, found again after a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctrl_exec.common.errors import StorageError
from ctrl_exec.common.messages import HostResult
from ctrl_exec.common.names import new_reqid
from ctrl_exec.services.events import EventLog
from ctrl_exec.services.journal import RunJournal
from ctrl_exec.services.progress import Received
from ctrl_exec.services.records import CancelOutcome, RunRecord, new_record
from ctrl_exec.services.results import ResultStore


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(str(tmp_path / "runs"), retention_s=100)


def begin(store: ResultStore, **facts) -> RunJournal:
    return store.begin(new_record(new_reqid(), "job", ("a", "b"), created=1000, **facts))


def loaded(store: ResultStore, reqid: str) -> RunRecord:
    found = store.load(reqid)
    assert found is not None
    return found


def done(host: str, **facts) -> HostResult:
    return HostResult(host, "job", **({"state": "ok", "exit": 0} | facts))


def test_pieces_are_on_record_at_once_and_composed_in_the_end(store: ResultStore, tmp_path: Path) -> None:
    journal = begin(store)
    journal.note_output("a", "stdout", "one\n", 4)
    journal.note_output("b", "stderr", 'quo"te\\ é\n', 11)
    journal.note_output("a", "stdout", "two\n", 8)
    assert loaded(store, journal.reqid).results[0].stdout == "one\ntwo\n"
    assert journal.result_of("a").stdout == "", "it is on disk alone"
    journal.note(done("a", stdout="three\n"))
    journal.note(done("b", state="failed", exit=3))
    assert journal.full_result("a").stdout == "one\ntwo\nthree\n"
    assert journal.read_back().results[1].stderr == 'quo"te\\ é\n'
    journal.finish("completed", 2000)
    found = loaded(store, journal.reqid)
    assert [each.stdout for each in found.results] == ["one\ntwo\nthree\n", ""]
    assert found.results[1].stderr == 'quo"te\\ é\n'
    head = store.head(journal.reqid)
    assert head is not None
    assert (head.complete, head.counts, head.hosts) == (True, {"ok": 1, "failed": 1}, ("a", "b"))
    assert {path.suffix for path in (tmp_path / "runs").glob(f"{journal.reqid}*")} == {".json", ".events"}
    assert store.adopt(journal.reqid) is None
    assert store.purge(10_000) == 1
    assert not list((tmp_path / "runs").glob(f"{journal.reqid}*"))


def test_small_output_leaves_no_log(store: ResultStore, tmp_path: Path) -> None:
    journal = begin(store)
    for host in ("a", "b"):
        journal.note(done(host, stdout="out\n"))
    journal.finish("completed", 2000)
    assert not list((tmp_path / "runs").glob("*.events"))
    places = loaded(store, journal.reqid).places
    assert 0 < places["a"] < places["b"]


def test_after_a_crash_it_is_known_where_each_stream_ended(store: ResultStore, tmp_path: Path) -> None:
    journal = begin(store)
    journal.note_output("a", "stdout", "one\n", 4)
    journal.note_output("a", "stdout", "tail")
    journal.note_output("b", "stdout", "é\n", 3)
    journal.close()
    with (tmp_path / "runs" / f"{journal.reqid}.events").open("ab") as log:
        log.write(b'{"out":"a","stream":"stdout","text":"torn')
    again = store.adopt(journal.reqid)
    assert again is not None
    assert again.received("a", "stdout") == Received(4, 8, 4)
    assert again.received("b", "stdout") == Received(3, 2, 0)
    assert again.received("b", "stderr") == Received()
    again.note_output("a", "stdout", "end\n", 12)
    for host in ("a", "b"):
        again.note(done(host))
    again.finish("completed", 2000)
    assert [each.stdout for each in loaded(store, journal.reqid).results] == ["one\ntailend\n", "é\n"]


def test_a_rewritten_record_keeps_what_hosts_said_in_the_log(store: ResultStore) -> None:
    journal = begin(store)
    journal.note_output("a", "stdout", "one\n", 4)
    journal.note(done("a"))
    assert journal.write("interrupted").results[0].stdout == "one\n"
    journal.close()
    found = loaded(store, journal.reqid)
    assert (found.state, found.results[0].stdout, found.pending) == ("interrupted", "one\n", ("b",))


def test_large_results_are_told_in_pieces(store: ResultStore) -> None:
    journal = begin(store)
    journal.note(done("a", stdout="x" * 200_000))
    assert journal.result_of("a").stdout == ""
    log = store.open_log(journal.reqid)
    assert log is not None
    lines = list(log.lines())
    log.close()
    assert max(len(line) for _, line in lines) < 70_000
    assert loaded(store, journal.reqid).results[0].stdout == "x" * 200_000


def test_batches_and_cancels_are_on_record(store: ResultStore) -> None:
    journal = begin(store, batches=(("a",), ("b",)))
    journal.note_batch(1, ("a",))
    journal.note_cancels((CancelOutcome("a", False, "not yet"), CancelOutcome("b", True)))
    journal.note_cancels((CancelOutcome("a", True), CancelOutcome("b", False, "late")))
    expected = (CancelOutcome("a", True), CancelOutcome("b", True))
    found = loaded(store, journal.reqid)
    assert (found.begun, found.batches, found.cancels) == (1, (("a",), ("b",)), expected)
    for host in ("a", "b"):
        journal.note(done(host))
    journal.finish("completed", 2000)
    found = loaded(store, journal.reqid)
    assert (found.begun, found.batches, found.cancels) == (1, (("a",), ("b",)), expected)


def test_the_wish_to_cancel_is_seen_and_goes_with_the_run(store: ResultStore, tmp_path: Path) -> None:
    journal = begin(store)
    assert not journal.is_cancelled
    store.ask_to_cancel(journal.reqid)
    store.ask_to_cancel(journal.reqid)
    assert journal.is_cancelled
    for host in ("a", "b"):
        journal.note(done(host))
    journal.finish("cancelled", 2000)
    assert not list((tmp_path / "runs").glob("*.cancel"))
    store.forget_cancel(journal.reqid)


def test_a_log_is_read_from_any_place_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [
        json.dumps({"n": number, "pad": "x" * (number * 1000 % 300_000)}).encode() + b"\n"
        for number in range(300)
    ]
    path.write_bytes(b"".join(lines[:200]) + lines[200][:5])
    log = EventLog(str(path))
    assert [line for _, line in log.lines()] == lines[:200]
    assert log.has_more
    with path.open("ab") as stream:
        stream.write(lines[200][5:] + b"".join(lines[201:]))
    path.unlink()  # a reader goes on
    assert [line for _, line in log.lines()] == lines[200:]
    assert list(log.lines()) == []
    assert not log.has_more
    log.close()


def test_any_offset_is_the_beginning_of_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"ab\ncde\n\nf")
    starts = {0: 0, 1: 0, 2: 0, 3: 3, 4: 3, 6: 3, 7: 7, 8: 8, 9: 8, 100: 8, -5: 0}
    for after, start in starts.items():
        log = EventLog(str(path), after)
        assert log.at == start, after
        log.close()
    with pytest.raises(FileNotFoundError):
        EventLog(str(tmp_path / "none"))
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(StorageError):
        EventLog(str(tmp_path / "link"))
