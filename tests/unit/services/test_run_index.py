"""The index of runs: what it finds, and that it is only a cache."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.common.errors import BusyError, StorageError
from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec.common.value import replace
from ctrl_exec.services.change_list import HEADER_BYTES, Position, change_list_of
from ctrl_exec.services.index_files import IndexFiles
from ctrl_exec.services.record_heads import read_head
from ctrl_exec.services.records import encode_record, new_record
from ctrl_exec.services.results import ResultStore
from ctrl_exec.services.run_filter import RunFilter
from ctrl_exec.services.run_index import RunIndex
from tests.support.polling import eventually

NOW = 1_700_000_000


def write(runs: Path, number: int, **facts: Any) -> str:
    """A complete record as a restored backup brings it: nobody is told."""
    reqid = f"{number:016x}"
    hosts = facts.pop("hosts", ("web-01", "db-01"))
    script = facts.pop("script", "deploy")
    facts = {"created": NOW + number, "completed": NOW + number + 1, "submitter": "alice"} | facts
    record = new_record(reqid, script, hosts, **facts)
    results = tuple(replace(each, state="ok", exit=0) for each in record.results)
    record = replace(record, results=results, complete=True, state=facts.get("state", "completed"))
    (runs / "done").mkdir(parents=True, exist_ok=True)
    (runs / f"{reqid}.json").write_text(json.dumps(encode_record(record), indent=1) + "\n")
    (runs / "done" / f"{record.completed or 0:08x}-{reqid}").touch()
    return reqid


def listed(index: RunIndex, limit: int = 100, **wanted: Any) -> list[int]:
    """The numbers of the runs that a first page shows."""
    return [int(head.reqid, 16) for head in index.page(RunFilter(**wanted), limit).runs]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_runs_are_listed_newest_first_in_pages(runs: Path) -> None:
    """Pages follow one another without gap or repetition, also while runs come in; the last has no cursor."""
    for number in range(25):
        write(runs, number)
    index = RunIndex(str(runs))
    assert index.rebuild() == 25
    seen, after = [], None
    while True:
        page = index.page(RunFilter(), 10, after)
        assert not page.is_indexing
        seen += [int(head.reqid, 16) for head in page.runs]
        after = page.after
        index.note([write(runs, 100 + len(seen))])
        if after is None:
            break
    assert seen == list(range(24, -1, -1))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"state": "cancelled"}, [7]), ({"state": "running"}, []), ({"script": "backup"}, [8, 6, 2]),
        ({"user": "bob"}, [8, 5]), ({"host": "db-02"}, [9, 8]), ({"since": NOW + 8}, [9, 8]),
        ({"script": "backup", "user": "bob"}, [8]), ({"host": "db-02", "user": "alice"}, [9]),
        ({"state": "completed", "host": "db-02", "user": "bob", "script": "backup", "since": NOW}, [8]),
        ({"state": "completed", "script": "backup"}, [8, 6, 2]), ({"user": "ali"}, []), ({"host": "db"}, []),
        ({"script": "back%"}, []), ({"user": "bob' OR 1 --"}, []),
    ],
    ids=str,
)  # fmt: skip
def test_filters(runs: Path, wanted: dict[str, Any], found: list[int]) -> None:
    """All that is given must hold, to the letter."""
    write(runs, 1)
    write(runs, 2, script="backup")
    write(runs, 5, submitter="bob")
    write(runs, 6, script="backup", hosts=("web-02",))
    write(runs, 7, state="cancelled")
    write(runs, 8, script="backup", submitter="bob", hosts=("db-02", "web-01"))
    write(runs, 9, hosts=("db-02",))
    index = RunIndex(str(runs))
    index.rebuild()
    assert listed(index, **wanted) == found


def test_a_run_is_in_the_list_from_its_beginning_on(runs: Path) -> None:
    """Begun, finished, purged: the next question shows it, without any look at all names."""
    index = RunIndex(str(runs))
    index.rebuild()
    store = ResultStore(str(runs), on_change=index.note)
    reqid = f"{1:016x}"
    journal = store.begin(new_record(reqid, "deploy", ("a", "b"), created=NOW))
    (shown,) = index.page(RunFilter(state="running"), 10).runs
    assert (shown.reqid, shown.complete, shown.completed, shown.counts) == (reqid, False, None, None)
    for host, state in (("a", "ok"), ("b", "lost")):
        journal.note(replace(journal.result_of(host), state=state, exit=0))
    journal.finish("completed", NOW + 5)
    (shown,) = index.page(RunFilter(), 10).runs
    assert (shown.state, shown.complete, shown.completed) == ("completed", True, NOW + 5)
    assert shown.counts == {"ok": 1, "lost": 1}
    assert listed(index, state="running") == []
    assert store.purge(NOW + 5 + 86_400) == 1
    assert listed(index) == []


def test_what_is_shown_is_what_the_record_says(runs: Path) -> None:
    """A change that nobody told of: the run is not shown under what it was."""
    write(runs, 1)
    write(runs, 2)
    index = RunIndex(str(runs))
    index.rebuild()
    write(runs, 1, state="cancelled")
    (runs / f"{2:016x}.json").unlink()
    assert listed(index, state="completed") == []
    assert listed(index, state="cancelled") == [1]  # the first question brought it up
    assert index.page(RunFilter(), 10).runs[0].state == "cancelled"


@pytest.mark.parametrize(
    "damage", ["all", "database", "current", "changes", "garbage", "emptied", "schema", "pointer"]
)
def test_the_index_comes_back(runs: Path, damage: str) -> None:
    """Whatever becomes of its files: no error, and after a look at all names everything is there."""
    for number in range(5):
        write(runs, number)
    index = RunIndex(str(runs))
    index.rebuild()
    index.note([write(runs, 5)])
    (database,) = (runs / "index").glob("*.db")
    if damage == "all":
        shutil.rmtree(runs / "index")
    elif damage == "database":
        database.unlink()
    elif damage == "schema":
        with sqlite3.connect(database) as opened:
            opened.execute("DROP TABLE progress")
        opened.close()
    elif damage == "pointer":
        (runs / "index" / "current").write_text("../../other.db")
    elif damage in ("current", "changes"):
        (runs / "index" / damage).unlink()
    else:
        database.write_bytes(b"garbage" * 1000 if damage == "garbage" else b"")
    index.note([write(runs, 6)])
    page = index.page(RunFilter(), 100)
    assert page.is_indexing
    index.rebuild()
    assert listed(index) == [6, 5, 4, 3, 2, 1, 0]
    assert not index.page(RunFilter(), 100).is_indexing


def test_records_from_a_backup_are_found_by_a_look_at_all_names(runs: Path) -> None:
    """And only what is a record: not what is torn, foreign, or of another id."""
    index = RunIndex(str(runs))
    write(runs, 1)
    assert index.rebuild() == 1
    before = index.scanned_at()
    old = runs / "a1b2c3d4.json"
    old.write_text((runs / f"{write(runs, 2)}.json").read_text().replace(f"{2:016x}", "a1b2c3d4"))
    for name, text in (
        ("b" * 16, "{"), ("c" * 16, "[]"), ("d" * 16, "null"), ("e" * 16, old.read_text()),
        ("f" * 16, old.read_text().replace("a1b2c3d4", "f" * 16).replace('"deploy"', '"\\ud800"')),
        ("1" * 16, old.read_text().replace("a1b2c3d4", "1" * 16).replace(str(NOW + 2), "1" + "0" * 30)),
    ):  # fmt: skip
        (runs / f"{name}.json").write_text(text)
    (runs / "notes.txt").write_text("by a person")
    (runs / ("9" * 16 + ".json")).symlink_to("/etc/passwd")
    index.rebuild()
    assert {head.reqid for head in index.page(RunFilter(), 100).runs} == {
        f"{1:016x}",
        f"{2:016x}",
        "a1b2c3d4",
    }
    assert index.scanned_at() >= before > 0


def test_a_lost_line_about_a_runs_end_is_made_up_for(runs: Path) -> None:
    """A carrier that died between its last two steps leaves a run that the index takes for running."""
    told: list[str] = []
    store = ResultStore(str(runs), on_change=told.extend)
    index = RunIndex(str(runs))
    journal = store.begin(new_record(f"{1:016x}", "deploy", ("a",), created=NOW))
    index.note(told)
    index.rebuild()
    journal.note(replace(journal.result_of("a"), state="ok", exit=0))
    journal.finish("completed", NOW + 1)
    assert listed(index, state="completed") == []
    index.rebuild()
    assert listed(index, state="completed") == [1]


def test_a_large_record_is_listed_without_its_output(runs: Path) -> None:
    """Its head is read and no more; a page of long host lists ends early, and the next one goes on."""
    write(runs, 1)
    path = runs / f"{1:016x}.json"
    path.write_text(path.read_text().replace('"stdout": ""', '"stdout": "' + "x" * (4 << 20) + '"'))
    head = read_head(str(runs), f"{1:016x}")
    assert head is not None
    assert head.size < 1000
    names = tuple(f"host-{number:05d}.example.net" for number in range(10_000))
    for number in range(2, 6):
        write(runs, number, hosts=names)
    index = RunIndex(str(runs))
    index.rebuild()
    first = index.page(RunFilter(), 100)
    assert 1 <= len(first.runs) < 5
    assert first.after is not None
    assert len(first.runs[0].hosts) == 10_000
    second = index.page(RunFilter(), 100, first.after)
    assert first.runs[-1].created - second.runs[0].created == 1
    assert listed(index, host="host-09999.example.net")[0] == 5


def test_the_list_of_changes_is_cut_when_it_was_read(runs: Path) -> None:
    """It does not grow for ever, and nothing that is appended meanwhile is lost."""
    index = RunIndex(str(runs))
    index.rebuild()
    reqid = write(runs, 1)
    for _ in range(5000):
        index.note([reqid])
    path = runs / "index" / "changes"
    assert path.stat().st_size > 80_000
    assert eventually(lambda: index.is_current(5))
    assert path.stat().st_size == HEADER_BYTES
    index.note([write(runs, 2)])
    assert listed(index) == [2, 1]


def test_changes_survive_what_tears_them(runs: Path) -> None:
    """A part of a line, as a full disk leaves it, spoils no other line; a strange one is passed over."""
    changes = change_list_of(str(runs))
    changes.note(["a" * 16])
    with (runs / "index" / "changes").open("ab") as stream:
        stream.write(b"0123456789")
    changes.note(["b" * 16, "c" * 16])
    with (runs / "index" / "changes").open("ab") as stream:
        stream.write(b"../../etc\n" + b"\xff" * 20 + b"\n" + b"z" * 5000)
    found = changes.read(Position(), 10)
    assert not found.is_continued
    whole = changes.read(found.position, 500)
    assert whole.is_continued
    assert {*found.reqids, *whole.reqids} == {"a" * 16, "b" * 16, "c" * 16, "0123456789"}
    changes.note(["d" * 16])
    assert changes.read(whole.position, 500).reqids[-1] == "d" * 16


def test_nobody_minds_a_list_that_can_not_be_written(tmp_path: Path) -> None:
    """A run goes on without it."""
    (tmp_path / "runs").write_text("no directory")
    change_list_of(str(tmp_path / "runs")).note(["a" * 16])


def test_only_one_process_looks_at_all_names(runs: Path) -> None:
    write(runs, 1)
    index = RunIndex(str(runs))
    index.rebuild()
    held = os.open(runs / "index" / "scan.lock", os.O_RDWR)
    reading, writing = os.pipe()
    try:

        def work() -> int:
            import fcntl

            fcntl.flock(os.open(runs / "index" / "scan.lock", os.O_RDWR), fcntl.LOCK_EX)
            os.write(writing, b"1")
            signal.pause()
            return 0

        pid = fork_child(work)
        assert os.read(reading, 1) == b"1"
        assert index.rebuild() is None
        os.kill(pid, signal.SIGKILL)
        wait_status(pid)
        assert index.rebuild() == 0
    finally:
        for fd in (held, reading, writing):
            os.close(fd)


def test_an_index_that_went_has_no_strangers(runs: Path) -> None:
    """It may be removed between any two steps of a look at all names."""
    RunIndex(str(runs)).rebuild()
    found = IndexFiles(str(runs / "index"))
    assert found.current()
    shutil.rmtree(runs / "index")
    found.remove_strangers()
    assert not (runs / "index").exists()


def test_deleted_again_and_again_under_load(runs: Path) -> None:
    """Readers, writers and rebuilders, some killed, while the index is removed: no error, and all is found."""
    for number in range(300):
        write(runs, number)
    end = runs.parent / "end"

    def read() -> int:
        index = RunIndex(str(runs))
        while not end.exists():
            numbers = listed(index)
            assert numbers == sorted(numbers, reverse=True)
        return 0

    def rebuild() -> int:
        while not end.exists():
            with contextlib.suppress(StorageError, BusyError):  # its directory went while it was at it
                RunIndex(str(runs)).rebuild()
        return 0

    def add() -> int:
        for number in range(1000, 1100):
            RunIndex(str(runs)).note([write(runs, number)])
        return 0

    adder = fork_child(add)
    others = [fork_child(read), fork_child(read), fork_child(rebuild)]
    victim = fork_child(rebuild)
    chance = random.Random(7)
    for turn in range(12):
        eventually(lambda: list((runs / "index").glob("*.db")), what="a database")
        if turn % 3:
            shutil.rmtree(runs / "index", ignore_errors=True)
        else:
            os.kill(victim, signal.SIGKILL)
            wait_status(victim)
            for path in chance.sample(sorted((runs / "index").glob("*")), 1):
                path.unlink(missing_ok=True)
            victim = fork_child(rebuild)
    assert wait_status(adder, timeout_s=60) == (0, 0)
    end.touch()
    for pid in (*others, victim):
        assert wait_status(pid, timeout_s=60) == (0, 0)
    index = RunIndex(str(runs))
    eventually(lambda: index.rebuild() is not None)
    assert listed(index, 500) == [*range(1099, 999, -1), *range(299, -1, -1)]


@pytest.mark.long
def test_half_a_million_records(tmp_path: Path) -> None:
    """Any question is answered within 100 ms (p95), whatever it asks for; the index is rebuilt in bounded memory."""
    runs = tmp_path / "runs"
    count = int(os.environ.get("RUN_INDEX_RECORDS", "500000"))
    sample = write(
        runs, 1, created=NOW, script="script-0", submitter="user-0", hosts=("web-00a", "web-00b", "web-00c")
    )
    text = (runs / f"{sample}.json").read_text()
    for number in range(count):
        reqid = f"{number:016x}"
        made = text.replace(sample, reqid).replace(str(NOW), str(NOW + number // 5))
        made = made.replace("script-0", f"script-{number % 40}").replace("user-0", f"user-{number % 50}")
        for place, step in (("a", 1), ("b", 7), ("c", 31)):
            made = made.replace(f"web-00{place}", f"web-{(number * step) % 301:03d}")
        (runs / f"{reqid}.json").write_text(made)
        (runs / "done" / f"{NOW + number // 5:08x}-{reqid}").touch()

    def memory_kb(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def build() -> int:
        before = memory_kb("VmRSS")
        RunIndex(str(runs)).rebuild()
        (tmp_path / "grown").write_text(str(memory_kb("VmHWM") - before))
        return 0

    assert wait_status(fork_child(build)) == (0, 0)
    assert int((tmp_path / "grown").read_text()) < 64_000
    questions: list[dict[str, Any]] = [
        {}, {"script": "script-3"}, {"user": "user-7"}, {"host": "web-007"}, {"state": "completed"},
        {"state": "running"}, {"script": "script-3", "user": "user-4"}, {"state": "completed", "script": "none"},
        {"host": "web-001", "user": "user-4", "script": "script-9"}, {"since": NOW + count // 5 - 10},
        {"state": "completed", "script": "script-3", "user": "user-4", "host": "web-009"},
    ]  # fmt: skip
    for wanted in questions:
        taken = []
        for _ in range(20):
            start = time.perf_counter()
            page = RunIndex(str(runs)).page(RunFilter(**wanted), 100)
            taken.append(time.perf_counter() - start)
            assert not page.is_indexing
        # without the index it would be the reading of half a million records
        assert statistics.median(taken) < 1, (wanted, sorted(taken))
    shutil.rmtree(runs)  # a million names that nobody wants kept
