"""Script locks: all or nothing, inherited by fork, gone with the last holder, shown by the kernel."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctrl_exec.common.errors import InvalidNameError, LockedError, StorageError
from ctrl_exec.common.process import detach, fork_child, wait_status
from ctrl_exec.services.locks import HeldLocks, ScriptLocks
from tests.support.polling import eventually


@pytest.fixture
def locks(tmp_path: Path) -> ScriptLocks:
    return ScriptLocks(str(tmp_path / "locks"))


kept = []


def keep(held: HeldLocks) -> None:
    """Hold on until the process ends."""
    kept.append(held)


def is_free(locks: ScriptLocks, host: str) -> bool:
    try:
        locks.hold([host], "job").close()
    except LockedError:
        return False
    return True


@contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
    """A child that does the work, says so, and stays until it is killed."""
    reading, writing = os.pipe()

    def stay() -> None:
        work()
        os.write(writing, b"1")
        signal.pause()

    pid = fork_child(stay)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"1"
        yield pid
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        wait_status(pid)


def test_the_same_pair_is_held_once(locks: ScriptLocks) -> None:
    """A second holder is refused with the host names, other pairs are free."""
    with locks.hold(["b", "a"], "job") as held:
        assert held.hosts == ("a", "b")
        with pytest.raises(LockedError) as caught:
            locks.hold(["c", "b", "a"], "job")
        assert caught.value.conflicts == ("a", "b")
        assert caught.value.script == "job"
        locks.hold(["a"], "other").close()
        locks.hold(["c"], "job").close()
    locks.hold(["a", "b"], "job").close()


def test_nothing_is_kept_after_a_conflict(locks: ScriptLocks) -> None:
    """All or nothing."""
    with locks.hold(["b"], "job"):
        with pytest.raises(LockedError):
            locks.hold(["a", "b", "c"], "job")
        assert locks.held() == (("b", "job"),)


def test_files_have_the_mode_and_stay(locks: ScriptLocks, tmp_path: Path) -> None:
    """2770 and 0660 whatever the umask; never deleted; closed on exec."""
    before = os.umask(0o077)
    try:
        with locks.hold(["a"], "job") as held:
            assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in held.fds)
    finally:
        os.umask(before)
    path = tmp_path / "locks" / "a" / "job"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o2770


def test_links_are_not_followed(locks: ScriptLocks, tmp_path: Path) -> None:
    """Neither a lock file nor its directory may be a link."""
    target = tmp_path / "target"
    (tmp_path / "locks" / "a").mkdir(parents=True)
    (tmp_path / "locks" / "a" / "job").symlink_to(target)
    (tmp_path / "locks" / "b").symlink_to(tmp_path)
    for host in ("a", "b"):
        with pytest.raises(StorageError, match="symbolic link"):
            locks.hold([host], "job")
    assert not target.exists()


@pytest.mark.parametrize(("host", "script"), [("../x", "job"), ("a", "../job"), ("a/b", "job"), ("a", "")])
def test_names_are_checked_where_the_path_is_built(locks: ScriptLocks, host: str, script: str) -> None:
    """No name leaves the directory."""
    with pytest.raises(InvalidNameError):
        locks.hold([host], script)


def test_a_lock_ends_with_its_holder(locks: ScriptLocks) -> None:
    """kill -9 of the holder frees the pair at once."""
    with child(lambda: keep(locks.hold(["b"], "job"))) as pid:
        with pytest.raises(LockedError):
            locks.hold(["b"], "job")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: is_free(locks, "b"))


def test_a_fork_inherits_and_closing_here_does_not_unlock(locks: ScriptLocks) -> None:
    """The parent only closes; the lock ends with the child that inherited it."""
    held = locks.hold(["a"], "job")
    with child(lambda: None) as pid:
        held.close()
        with pytest.raises(LockedError):
            locks.hold(["a"], "job")
        assert locks.held() == (("a", "job"),)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: is_free(locks, "a"))


def test_a_detached_process_keeps_the_lock_when_its_maker_is_gone(locks: ScriptLocks, tmp_path: Path) -> None:
    """Held by a grandchild whose parents are gone; the table still names the pair."""
    fifo = tmp_path / "stop"
    os.mkfifo(fifo)

    def work() -> None:
        keep(locks.hold(["a"], "job"))
        detach(lambda: fifo.read_bytes() and None)

    assert wait_status(fork_child(work), timeout_s=60) == (0, 0)
    assert locks.held() == (("a", "job"),)
    with pytest.raises(LockedError):
        locks.hold(["a"], "job")
    fifo.write_bytes(b"go")
    eventually(lambda: locks.held() == ())


def test_released_hosts_are_free_the_others_not(locks: ScriptLocks) -> None:
    """A host that has said its last word is free before the run ends."""
    with locks.hold(["a", "b"], "job") as held:
        held.release("a")
        held.release("unknown")
        locks.hold(["a"], "job").close()
        with pytest.raises(LockedError) as caught:
            locks.hold(["a", "b"], "job")
        assert caught.value.conflicts == ("b",)


def test_held_does_not_probe(locks: ScriptLocks, tmp_path: Path) -> None:
    """Listing never makes an honest run fail: hundreds of tries beside a busy lister all succeed."""

    def list_forever() -> None:
        pid = os.getpid()
        if os.fork() == 0:
            while os.getppid() == pid:
                locks.held()
            os._exit(0)

    locks.hold(["a"], "job").close()
    with child(list_forever):
        for _ in range(300):
            locks.hold(["a"], "job").close()


def test_strange_entries_are_passed_over(locks: ScriptLocks, tmp_path: Path) -> None:
    """Files that are no locks do not disturb the list; without a directory it is empty."""
    assert locks.held() == ()
    (tmp_path / "locks" / "a").mkdir(parents=True)
    (tmp_path / "locks" / "README").write_text("x")
    (tmp_path / "locks" / "Upper").mkdir()
    (tmp_path / "locks" / "a" / "not.a.script").write_text("x")
    assert locks.held() == ()


def test_two_that_meet_never_both_fail(tmp_path: Path) -> None:
    """Of many processes that want overlapping hosts at once, one always wins."""
    locks = ScriptLocks(str(tmp_path / "locks"))
    hosts = [f"h{number}" for number in range(8)]

    def contend(start: int) -> int:
        wins = 0
        reading.read(1)
        for turn in range(100):
            try:
                locks.hold(hosts[(start + turn) % 4 :], "job").close()
                wins += 1
            except LockedError:
                pass
        return min(wins, 100)

    gate_read, gate_write = os.pipe()
    reading = os.fdopen(gate_read, "rb", buffering=0)
    children = [fork_child(lambda start=start: contend(start)) for start in range(3)]
    os.write(gate_write, b"xxx")
    codes = [wait_status(pid, timeout_s=60) for pid in children]
    os.close(gate_write)
    reading.close()
    assert all(code is not None and code[0] > 0 for code in codes), codes


def test_waiting_gets_the_lock_when_it_is_free(locks: ScriptLocks) -> None:
    """Within lock_wait the lock is taken once it is free, with nothing held between tries."""
    held = locks.hold(["b"], "job")
    pauses = []

    def pause(seconds: float) -> bool:
        pauses.append(seconds)
        assert locks.held() == (("b", "job"),)
        if len(pauses) == 3:
            held.close()
        return False

    with locks.hold_within(["a", "b"], "job", 3600, pause) as taken:
        assert taken.hosts == ("a", "b")
    assert len(pauses) == 3
    assert len(set(pauses)) == 3, "jitter"
    assert all(0 < seconds <= 1 for seconds in pauses)


def test_waiting_ends(locks: ScriptLocks) -> None:
    """At the end of the time, or when the caller gives up, it is a conflict."""
    with locks.hold(["a"], "job"):
        for wait_s, gives_up in ((0, False), (0.05, False), (3600, True)):
            with pytest.raises(LockedError):
                locks.hold_within(["a"], "job", wait_s, lambda _, gives_up=gives_up: gives_up)


def test_many_hosts_raise_the_soft_limit_of_descriptors(tmp_path: Path) -> None:
    """A run on more hosts than the soft limit of open files still locks each."""
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))\n"
        "from ctrl_exec.services.locks import ScriptLocks\n"
        f"held = ScriptLocks({str(tmp_path / 'locks')!r}).hold([f'h{{n}}' for n in range(1000)], 'job')\n"
        "assert len(held.fds) == 1000\n"
    )
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4096:
        pytest.skip("the hard limit is too low here")
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_no_room_for_descriptors_is_a_storage_error(tmp_path: Path) -> None:
    """Beyond the hard limit: a clear error, and nothing stays locked."""
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from ctrl_exec.common.errors import StorageError\n"
        "from ctrl_exec.services.locks import ScriptLocks\n"
        f"locks = ScriptLocks({str(tmp_path / 'locks')!r})\n"
        "try:\n    locks.hold([f'h{n}' for n in range(100)], 'job')\n"
        "except StorageError as error:\n    assert 'open files' in str(error), error\n"
        "else:\n    raise SystemExit('no error')\n"
        "assert locks.held() == ()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.root
def test_in_a_container_inherited_locks_are_listed_too(tmp_path: Path) -> None:
    """In a PID namespace /proc/locks hides a lock whose first taker is gone; the list does not."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a PID namespace")
    script = (
        "import os, sys, signal\nfrom ctrl_exec.common.process import detach, fork_child, wait_status\n"
        "from ctrl_exec.services.locks import ScriptLocks\n"
        f"locks = ScriptLocks({str(tmp_path / 'locks')!r})\n"
        "def work():\n    global held\n    held = locks.hold(['a'], 'job')\n    detach(signal.pause)\n"
        "wait_status(fork_child(work))\n"
        "assert locks.held() == (('a', 'job'),), locks.held()\n"
    )
    made = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, script],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "Operation not permitted" in made.stderr:
        pytest.skip("PID namespaces are not allowed here")
    assert made.returncode == 0, made.stderr
