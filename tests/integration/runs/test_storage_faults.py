"""A state directory that is full or read-only: a clear error, nothing half written, service goes on after."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctrl_exec.common.errors import CtrlExecError, StorageError
from ctrl_exec.common.process import fork_child, wait_status
from ctrl_exec.operations.status import purge, recover, sweep, unfinished
from tests.integration.runs.dispatching import Bench
from tests.support.emulated import Fleet
from tests.support.polling import eventually


@pytest.fixture
def small(tmp_path: Path, agents: Fleet) -> Iterator[Bench]:
    """A dispatcher whose state is on a file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    (tmp_path / "state").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", str(tmp_path / "state")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        made = Bench(tmp_path, agents)
        yield made
        made.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "state")], check=True)


def fill(bench: Bench, *, leave_bytes: int = 0) -> Callable[[], None]:
    """Fill the file system; gives what empties it again."""
    path = bench.home / "state" / "ballast"
    with path.open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(b"\0" * 4096)
        except OSError:
            pass
    if leave_bytes:
        os.truncate(path, path.stat().st_size - leave_bytes)
    return path.unlink


@pytest.mark.root
def test_a_full_disk_refuses_a_run_before_anything_is_sent(small: Bench) -> None:
    """No host is contacted, nothing half written, no lock held; after the disk is emptied all is well."""
    small.run("host-0001")
    names = {path.name for path in small.runs.iterdir()}
    before = len(small.fleet.requests())
    empty = fill(small)
    for _ in range(3):
        with pytest.raises(StorageError, match="No space left"):
            small.run("host-0001", args=("x" * 5000,))
    assert small.held() == ()
    assert {path.name for path in small.runs.iterdir()} == names
    assert len(small.fleet.requests()) == before
    empty()
    assert small.run("host-0001").has_succeeded


@pytest.mark.root
def test_a_disk_that_fills_during_a_run_costs_no_result(small: Bench) -> None:
    """The caller gets what the agents said; the record is completed when there is room again."""
    small.run("host-0001")
    empty = fill(small, leave_bytes=24_576)
    report = small.run("large", "host-0001", script="other")
    assert report.counts == {"ok": 2}
    assert len(report.results[0].stdout) == 300_003
    assert "No space left" in small.lines.getvalue()
    stored = small.dispatcher().results.load(report.reqid)
    assert stored is not None
    assert not stored.complete, "what could not be written is not claimed"
    assert small.held() == ()
    empty()
    found = small.wait_complete(report.reqid)
    assert (found.state, found.counts) == ("completed", {"ok": 2})
    assert len(found.results[0].stdout) == 300_003


@pytest.mark.root
def test_recovery_on_a_full_disk_waits(small: Bench) -> None:
    """Recovery says what is wrong, spoils nothing, and completes the run later."""
    report = small.run("slow", read_timeout_s=0.2, is_async=False)
    eventually(lambda: small.dispatcher().results.is_carried(report.reqid))
    empty = fill(small)
    recover(small.dispatcher())
    purge(small.dispatcher())
    empty()
    found = small.wait_complete(report.reqid)
    assert found.counts == {"ok": 1}


@pytest.mark.root
def test_a_read_only_state_directory(small: Bench) -> None:
    """Runs are refused with the path; what was recorded can still be read; nothing crashes."""
    report = small.run("host-0001")
    waiting = small.dispatcher().results
    subprocess.run(["mount", "-o", "remount,ro", str(small.home / "state")], check=True)
    with pytest.raises(StorageError, match="Read-only file system"):
        small.run("host-0002", script="other")
    assert small.status(report.reqid) == report
    assert waiting.load(report.reqid) is not None
    with pytest.raises(StorageError, match="Read-only"):
        small.dispatcher().results.purge(10**10)
    assert sweep(small.dispatcher()) == 0
    assert small.held() == ()
    subprocess.run(["mount", "-o", "remount,rw", str(small.home / "state")], check=True)
    assert small.run("host-0002", script="other").has_succeeded


@pytest.mark.root
def test_a_full_disk_under_the_feet_of_many(small: Bench) -> None:
    """Concurrent runs on a full disk all fail cleanly and leave nothing."""
    small.run("host-0001")
    count = len(list(small.runs.iterdir()))
    empty = fill(small)

    def work() -> int:
        try:
            small.run("host-0002", args=("x" * 9000,), lock_wait_s=30)
        except StorageError:
            return 42
        return 0

    children = [fork_child(work) for _ in range(5)]
    assert {wait_status(pid, timeout_s=60) for pid in children} == {(42, 0)}
    assert len(list(small.runs.iterdir())) == count
    empty()


def test_descriptors_run_out_at_any_point(tmp_path: Path, agents: Fleet) -> None:
    """With too few descriptors a run works or is refused by name: no traceback, no stuck lock, no false record."""
    bench = Bench(tmp_path, agents)

    def work(spare: int) -> int:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        bench.run("host-0001", script=f"first-{spare}")  # all modules are loaded
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        while (last := os.open("/dev/null", os.O_RDONLY)) <= highest:
            pass  # no gaps are left below
        limit = min(last + 1 + spare, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        try:
            report = bench.run("host-0001", "slow", script=f"job-{spare}", read_timeout_s=0.5)
        except CtrlExecError:
            return 43
        return 42 if sum(report.counts.values()) == 2 else 1

    codes = []
    for start in range(0, 24, 6):
        children = [fork_child(lambda spare=spare: work(spare)) for spare in range(start, start + 6)]
        codes += [wait_status(pid, timeout_s=120) for pid in children]
    assert set(codes) <= {(42, 0), (43, 0)}
    assert (codes[0], codes[-1]) == ((43, 0), (42, 0))

    def all_settled() -> bool:
        recover(bench.dispatcher())
        return not unfinished(bench.dispatcher())

    eventually(all_settled, timeout_s=60, pause_s=0.5)
    eventually(lambda: bench.held() == ())
    for reqid in bench.reqids():
        found = bench.status(reqid)
        assert set(found.counts) <= {"ok", "unreachable", "lost", "cancelled"}
    sweep(bench.dispatcher())
    # the log is kept of what was told piece by piece
    assert {path.suffix for path in bench.runs.iterdir() if path.is_file()} - {".events"} == {".json"}
