"""Run records: durable, whole, adopted by one, merged from events, purged by name."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrl_exec.common.errors import InvalidNameError, StorageError
from ctrl_exec.common.messages import FINAL_STATES, STATES, HostResult
from ctrl_exec.common.names import new_reqid
from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec.services.progress import merge_events
from ctrl_exec.services.records import RunRecord, decode_record, encode_record, new_record
from ctrl_exec.services.results import ResultStore

HOSTS = ("a", "b", "c")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def store(runs: Path) -> ResultStore:
    return ResultStore(str(runs), retention_s=100)


def record_of(reqid: str = "", **facts) -> RunRecord:
    return new_record(reqid or new_reqid(), "job", HOSTS, **({"created": 1000} | facts))


def done(record: RunRecord, host: str, **facts) -> HostResult:
    return HostResult(
        host, "job", **({"state": "ok", "reqid": record.reqid, "exit": 0, "stdout": "out\n"} | facts)
    )


def names(runs: Path) -> set[str]:
    return {path.name for path in runs.iterdir()} - {"done"}


def test_begin_is_whole_and_carried(store: ResultStore, runs: Path) -> None:
    """After begin the record can be read by anyone, has a carrier, and its mode."""
    record = record_of(args=("--x",), submitter="alice", submitter_ip="192.0.2.1", ports=(("b", 7500),))
    journal = store.begin(record)
    loaded = store.load(record.reqid)
    assert loaded is not None
    assert encode_record(loaded) == encode_record(record)
    assert store.is_carried(record.reqid)
    assert store.unfinished() == (record.reqid,)
    assert names(runs) == {record.reqid + suffix for suffix in (".json", ".events", ".lock")}
    for name in names(runs):
        assert stat.S_IMODE((runs / name).stat().st_mode) == 0o660
    assert stat.S_IMODE(runs.stat().st_mode) == 0o2770
    journal.close()
    assert not store.is_carried(record.reqid)


def test_it_grows_and_finishes(store: ResultStore, runs: Path) -> None:
    """Noted hosts show at once; finishing writes all and leaves one file and one name."""
    record = record_of()
    journal = store.begin(record)
    assert journal.note(done(record, "b", truncated=(5, 0)))
    loaded = store.load(record.reqid)
    assert loaded is not None
    assert loaded.pending == ("a", "c")
    assert loaded.results[1] == done(record, "b", truncated=(5, 0))
    assert not loaded.complete
    for host in ("a", "c"):
        journal.note(done(record, host, state="failed", exit=3, error="no"))
    finished = journal.finish("completed", 2000)
    assert (finished.complete, finished.completed, finished.state) == (True, 2000, "completed")
    assert store.load(record.reqid) == finished
    assert [each.host for each in finished.results] == list(HOSTS)
    assert names(runs) == {record.reqid + ".json"}
    assert os.listdir(runs / "done") == [f"{2000:08x}-{record.reqid}"]
    assert store.unfinished() == ()
    assert not store.is_carried(record.reqid)
    assert store.adopt(record.reqid) is None
    assert names(runs) == {record.reqid + ".json"}


def test_a_final_word_is_final(store: ResultStore) -> None:
    """Nothing follows a final state, and strangers are not noted."""
    record = record_of()
    journal = store.begin(record)
    assert journal.note(done(record, "a", state="running", exit=-1))
    assert journal.note(done(record, "a"))
    assert not journal.note(done(record, "a", state="failed"))
    assert not journal.note(done(record, "z"))
    loaded = store.load(record.reqid)
    assert loaded is not None
    assert loaded.results[0].state == "ok"


def test_the_submitter_is_stored(store: ResultStore, runs: Path) -> None:
    """Who asked is in the record for the hook."""
    record = record_of(submitter="alice", submitter_ip="192.0.2.1")
    store.begin(record)
    assert json.loads((runs / f"{record.reqid}.json").read_text())["submitter"] == {
        "username": "alice",
        "source_ip": "192.0.2.1",
    }


def test_an_id_is_never_used_twice(store: ResultStore, runs: Path) -> None:
    """A second begin of the same id fails and disturbs nothing."""
    record = record_of()
    store.begin(record).note(done(record, "a"))
    before = {name: (runs / name).read_bytes() for name in names(runs)}
    with pytest.raises(StorageError):
        store.begin(record)
    assert {name: (runs / name).read_bytes() for name in names(runs)} == before
    finished = store.adopt(record.reqid)
    assert finished is None, "the first one still carries it"


def test_unknown_and_strange_ids(store: ResultStore) -> None:
    """None for what is not there; no id leads out of the directory."""
    assert store.load("0123456789abcdef") is None
    assert store.adopt("0123456789abcdef") is None
    assert not store.is_carried("0123456789abcdef")
    for reqid in ("../../etc/passwd", "..", "0123456789ABCDEF", "", "a/b"):
        for use in (store.load, store.adopt, store.is_carried):
            with pytest.raises(InvalidNameError):
                use(reqid)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"reqid": 1}', "\x00" * 100, '{"hosts": "x"}', "[" * 100000]
)
def test_a_record_that_is_none_is_a_named_error(store: ResultStore, runs: Path, content: str) -> None:
    """Damage is said with the path, never a traceback, and not made worse."""
    runs.mkdir()
    (runs / "0123456789abcdef.json").write_text(content)
    (runs / "0123456789abcdef.lock").write_text("")
    for use in (store.load, store.adopt):
        with pytest.raises(StorageError, match=r"0123456789abcdef\.json"):
            use("0123456789abcdef")
    assert (runs / "0123456789abcdef.json").read_text() == content
    assert store.sweep() == 0


def test_a_torn_last_line_is_passed_over_and_cut_off(store: ResultStore, runs: Path) -> None:
    """What a crash left of a line is not read, and does not spoil the next one."""
    record = record_of()
    journal = store.begin(record)
    journal.note(done(record, "a"))
    journal.close()
    events = runs / f"{record.reqid}.events"
    for torn in (b'{"result": {"host": "b", "sta', b"x" * 200_000):
        with events.open("ab") as stream:
            stream.write(torn)
        loaded = store.load(record.reqid)
        assert loaded is not None
        assert loaded.pending == ("b", "c")
        adopted = store.adopt(record.reqid)
        assert adopted is not None
        assert events.read_bytes().endswith(b"\n")
        adopted.close()
    adopted = store.adopt(record.reqid)
    assert adopted is not None
    adopted.note(done(record, "b"))
    loaded = store.load(record.reqid)
    assert loaded is not None
    assert loaded.pending == ("c",)


def test_one_adopts(store: ResultStore) -> None:
    """A carrier-less run is adopted by exactly one of many processes at once."""
    record = record_of()
    store.begin(record).close()
    reading, writing = os.pipe()

    def work() -> int:
        os.close(writing)
        os.read(reading, 1)
        journal = store.adopt(record.reqid)
        if journal is None:
            return 0
        for host in HOSTS:
            journal.note(done(record, host))
        journal.finish("completed", 2000)
        return 1

    children = [fork_child(work) for _ in range(8)]
    os.close(writing)
    codes = [wait_status(pid, timeout_s=60) for pid in children]
    os.close(reading)
    assert sorted(codes) == [(0, 0)] * 7 + [(1, 0)]
    loaded = store.load(record.reqid)
    assert loaded is not None
    assert loaded.complete


def test_what_is_finished_is_not_read_to_be_found_so(store: ResultStore, runs: Path) -> None:
    """A watcher that comes to its end late must not hold a gigabyte of output to learn that it is over."""
    record = record_of()
    journal = store.begin(record)
    for host in HOSTS:
        journal.note(done(record, host, stdout="x" * 500_000))
    journal.finish("completed", 2000)
    path = runs / f"{record.reqid}.json"
    path.write_bytes(path.read_bytes()[:-40])  # whoever reads its results sees that they are torn
    assert store.adopt(record.reqid) is None
    with pytest.raises(StorageError):
        store.load(record.reqid)
    assert f"{record.reqid}.lock" not in names(runs)


def test_the_carriers_death_is_seen(store: ResultStore) -> None:
    """While the carrier lives nobody adopts; after kill -9 anybody may, and finds what was noted."""
    record = record_of()
    reading, writing = os.pipe()

    def work() -> None:
        journal = store.begin(record)
        journal.note(done(record, "a"))
        os.write(writing, b"1")
        signal.pause()

    pid = fork_child(work)
    os.read(reading, 1)
    assert store.is_carried(record.reqid)
    assert store.adopt(record.reqid) is None
    os.kill(pid, signal.SIGKILL)
    wait_status(pid)
    assert not store.is_carried(record.reqid)
    journal = store.adopt(record.reqid)
    assert journal is not None
    assert journal.pending == ("b", "c")
    os.close(reading)
    os.close(writing)


def test_missed_moments_survive(store: ResultStore) -> None:
    """Since when an agent does not know the run is kept, and forgotten when it is heard of."""
    record = record_of()
    journal = store.begin(record)
    assert journal.note_missed("a", 5000) == 5000
    assert journal.note_missed("a", 5010) == 5000
    journal.note_missed("b", 5001)
    journal.note(done(record, "b", state="running"))
    journal.close()
    again = store.adopt(record.reqid)
    assert again is not None
    assert again.note_missed("a", 6000) == 5000
    assert again.note_missed("b", 6000) == 6000


def test_two_hundred_at_once(store: ResultStore, runs: Path) -> None:
    """200 concurrent begins and finishes in 8 processes: each record whole, nothing left over."""

    def work() -> int:
        for _ in range(25):
            record = record_of()
            journal = store.begin(record)
            for host in HOSTS:
                journal.note(done(record, host))
            journal.finish("completed", 2000)
        return 0

    children = [fork_child(work) for _ in range(8)]
    assert [wait_status(pid, timeout_s=120) for pid in children] == [(0, 0)] * 8
    found = names(runs)
    assert len(found) == 200
    assert len(os.listdir(runs / "done")) == 200
    for name in found:
        record = store.load(name.removesuffix(".json"))
        assert record is not None
        assert record.complete
        assert len(record.results) == 3


def test_purge_goes_by_the_names_in_done(store: ResultStore, runs: Path) -> None:
    """What was completed longer ago than the retention goes, all of it; the rest stays."""
    old, young, running = record_of(), record_of(), record_of()
    store.begin(old).finish("completed", 2000)
    store.begin(young).finish("completed", 2050)
    store.begin(running)
    (runs / "done" / "not-a-marker").write_text("")
    assert store.purge(2099) == 0
    assert store.purge(2100) == 1
    assert store.load(old.reqid) is None
    assert store.load(young.reqid) is not None
    assert store.load(running.reqid) is not None
    assert store.purge(2100) == 0
    assert store.purge(0) == 0


@pytest.mark.parametrize("thousands", [5, pytest.param(25, marks=pytest.mark.long)])
def test_purge_of_many(store: ResultStore, runs: Path, thousands: int) -> None:
    """Four of five thousands go in one call, with what is beside them, and only those."""
    count, old = thousands * 1000, thousands * 800
    (runs / "done").mkdir(parents=True)
    for number in range(count):
        completed = 2000 if number < old else 9000
        reqid = f"{number:016x}"
        (runs / f"{reqid}.json").touch()
        (runs / "done" / f"{completed:08x}-{reqid}").touch()
        if number % 1000 == 0:
            for suffix in (".events", ".cancel", ".lock"):
                (runs / f"{reqid}{suffix}").touch()
    assert store.purge(5000) == old
    assert len(os.listdir(runs / "done")) == count - old
    assert len(names(runs)) == count - old + (count - old) // 1000 * 3


def test_purge_of_many_that_meets_an_obstacle(store: ResultStore, runs: Path) -> None:
    """What can't be removed is said, and the next purge finds all that it was to remove."""
    (runs / "done").mkdir(parents=True)
    for number in range(1500):
        reqid = f"{number:016x}"
        (runs / f"{reqid}.json").touch()
        (runs / "done" / f"{2000:08x}-{reqid}").touch()
    obstacle = runs / f"{700:016x}.json"
    obstacle.unlink()
    obstacle.mkdir()
    with pytest.raises(StorageError):
        store.purge(5000)
    assert len(os.listdir(runs / "done")) == 1500
    obstacle.rmdir()
    assert store.purge(5000) == 1500
    assert names(runs) == set()
    assert os.listdir(runs / "done") == []


def test_sweep_puts_right_what_crashes_left(store: ResultStore, runs: Path) -> None:
    """Markers and locks are made again; half-written and orphaned files of long ago go."""
    finished, running = record_of(), record_of()
    store.begin(finished).finish("completed", 2000)
    store.begin(running).close()
    (runs / "done" / f"{2000:08x}-{finished.reqid}").unlink()
    (runs / f"{running.reqid}.lock").unlink()
    orphan = new_reqid()
    for name in (f"{orphan}.lock", f"{orphan}.events", ".tmp-123-abc"):
        (runs / name).touch()
        os.utime(runs / name, (1, 1))
    (runs / ".tmp-young").touch()
    assert store.sweep() == 5
    assert store.unfinished() == (running.reqid,)
    assert (runs / "done" / f"{2000:08x}-{finished.reqid}").exists()
    assert names(runs) == {
        f"{finished.reqid}.json", f"{running.reqid}.json", f"{running.reqid}.events", f"{running.reqid}.lock",
        ".tmp-young",
    }  # fmt: skip
    assert store.sweep() == 0


def test_finishing_where_the_marker_cannot_be_made_is_mended_by_the_sweep(
    store: ResultStore, runs: Path
) -> None:
    """A record counts as finished by its own content."""
    record = record_of()
    journal = store.begin(record)
    (runs / "done").rmdir()
    (runs / "done").write_text("in the way")
    journal.finish("completed", 2000)
    loaded = store.load(record.reqid)
    assert loaded is not None
    assert loaded.complete
    (runs / "done").unlink()
    assert store.sweep() == 1


def test_an_unwritable_place_leaves_nothing_behind(tmp_path: Path) -> None:
    """A directory that can't be made is a StorageError naming the path."""
    (tmp_path / "file").write_text("")
    store = ResultStore(str(tmp_path / "file" / "runs"))
    with pytest.raises(StorageError, match="file"):
        store.begin(record_of())
    with pytest.raises(StorageError, match="file"):
        store.purge(10**9)


EVENT = st.builds(
    lambda host, state, code: {"result": HostResult(host, "job", state, exit=code).as_json()},
    st.sampled_from([*HOSTS, "z"]),
    st.sampled_from(STATES),
    st.integers(-1, 255),
)
LINE = st.one_of(
    EVENT.map(lambda event: json.dumps(event).encode()),
    st.builds(
        lambda host, at: json.dumps({"missed": host, "at": at}).encode(),
        st.sampled_from(HOSTS),
        st.integers(),
    ),
    st.binary(max_size=40),
    EVENT.flatmap(lambda event: st.integers(0, 60).map(lambda cut: json.dumps(event).encode()[:-cut])),
    st.sampled_from(
        [b"[" * 5000, b"null", b'{"result": null}', b'{"missed": 1}', b'{"result": {"host": "a"}}']
    ),
)


@settings(deadline=None)
@given(st.lists(LINE, max_size=20))
def test_any_event_log_merges_to_a_true_record(lines: list[bytes]) -> None:
    """Whatever the lines, each host has one result, counts sum to the hosts, first final words stay."""
    record = record_of("0123456789abcdef")
    merged = merge_events(record, lines)
    assert [each.host for each in merged.results] == list(HOSTS)
    longer = merge_events(
        merged, [json.dumps({"result": HostResult(host, "job", "lost").as_json()}).encode() for host in HOSTS]
    )
    for before, after in zip(merged.results, longer.results, strict=True):
        assert after.is_final
        assert after == before if before.state in FINAL_STATES else after.state == "lost"
    again = decode_record(json.loads(json.dumps(encode_record(merged))))
    assert encode_record(again) == encode_record(merged)
