"""Programs and children: real ones, with every way to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrl_exec.common import process, program
from ctrl_exec.common.errors import ConfigError, ProgramError, StorageError
from tests.support.descriptors import open_descriptors
from tests.support.polling import eventually
from tests.support.processes import environment

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def shell(
    script: str, *, timeout_s: float = 30, stdin: bytes = b"", limit_bytes: int = 1 << 20
) -> program.ProgramResult:
    return program.run_program(
        ["/bin/sh", "-c", script],
        environment=ENVIRONMENT,
        timeout_s=timeout_s,
        stdin=stdin,
        limit_bytes=limit_bytes,
    )


@pytest.fixture
def sigchld() -> Iterator[None]:
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


def test_a_program_gets_its_input_and_gives_output_and_code() -> None:
    result = shell("cat; echo wrong >&2; exit 3", stdin=b"hello")
    assert result == program.ProgramResult(3, 0, b"hello", b"wrong\n", False)
    assert not result.succeeded
    assert shell("exit 0").succeeded


def test_a_signal_is_no_exit_code() -> None:
    result = shell("kill -TERM $$")
    assert (result.exit_code, result.signal) == (-1, signal.SIGTERM)
    assert not result.succeeded


def test_the_environment_is_only_what_was_given() -> None:
    assert shell("env | grep -v -e ^PWD= -e ^_= -e ^SHLVL=").stdout == b"PATH=/usr/bin:/bin\n"


def test_no_other_descriptor_is_open_and_signals_are_default(tmp_path: Path) -> None:
    leaked = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    process.seal_descriptors()
    result = shell("ls /proc/self/fd | wc -l; grep -E '^Sig(Ign|Blk)' /proc/self/status")
    os.close(leaked)
    count, *masks = result.stdout.decode().split("\n")
    assert int(count) == 4  # three streams and the directory ls itself opens
    internal = 3 << 31  # signals 32 and 33 belong to the C library
    assert all(int(line.split()[1], 16) & ~internal == 0 for line in masks if line)


def test_a_program_that_reads_nothing_is_no_error() -> None:
    assert shell("exec 0<&-; exit 0", stdin=b"x" * (1 << 20)).succeeded


def test_output_beyond_the_limit_is_read_and_dropped() -> None:
    result = shell("head -c 5000000 /dev/zero; head -c 3000000 /dev/zero >&2", limit_bytes=1000)
    assert (len(result.stdout), len(result.stderr), result.exit_code) == (1000, 1000, 0)


def test_a_time_limit_ends_the_whole_group(tmp_path: Path) -> None:
    result = shell(
        f"trap '' TERM; (trap '' TERM; echo $$ > {tmp_path}/pid; sleep 1000) & sleep 1000", timeout_s=0.5
    )
    assert result.timed_out
    assert not result.succeeded
    group = int((tmp_path / "pid").read_text())
    eventually(lambda: not process.is_group_alive(group), what="the group is gone")


def test_a_daemon_that_keeps_the_pipes_is_not_waited_for() -> None:
    result = shell("setsid sleep 1000 & echo $!", timeout_s=30)
    assert not result.timed_out
    os.kill(int(result.stdout), signal.SIGKILL)


@pytest.mark.parametrize("path", ["/nonexistent/program", "/etc/passwd", "/tmp"])
def test_what_cannot_be_executed_is_named(path: str) -> None:
    with pytest.raises(ProgramError, match=path):
        program.run_program([path], environment=ENVIRONMENT, timeout_s=5)


def test_a_status_taken_by_someone_else_is_no_success(sigchld: None) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    assert shell("exit 0").signal == process.STOLEN_STATUS
    signal.signal(signal.SIGCHLD, lambda *_: _reap_all())
    assert not shell("exit 1").succeeded


def _reap_all() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def test_default_sigchld_undoes_an_inherited_ignore(sigchld: None) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    process.use_default_sigchld()
    assert shell("exit 7").exit_code == 7


def test_waiting_has_a_deadline() -> None:
    pid = process.spawn(["/bin/sleep", "1000"], environment={}, stdin=0, stdout=1, stderr=2)
    assert process.wait_status(pid, timeout_s=0.05) is None
    process.end_group(pid)
    assert process.wait_status(pid, timeout_s=60) == (-1, signal.SIGTERM)
    assert process.wait_status(pid, timeout_s=1) == (-1, process.STOLEN_STATUS)


def test_a_group_that_ignores_term_is_killed_after_the_grace() -> None:
    reading, writing = os.pipe()
    pid = process.spawn(
        ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done"],
        environment=ENVIRONMENT, stdin=0, stdout=writing, stderr=2,
    )  # fmt: skip
    assert os.read(reading, 10) == b"ready\n"
    process.end_group(pid, 0.2)
    assert process.wait_status(pid, timeout_s=60) == (-1, signal.SIGKILL)
    os.close(reading)
    os.close(writing)


def test_kept_descriptors_are_placed_even_when_they_cross(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT) for name in ("first", "second"))
    script = f"echo to-second > /proc/self/fd/{first}; echo to-first > /proc/self/fd/{second}"
    pid = process.spawn(
        ["/bin/sh", "-c", script], environment=ENVIRONMENT, stdin=0, stdout=first, stderr=2,
        keep={first: second, second: first},
    )  # fmt: skip
    assert process.wait_status(pid, timeout_s=60) == (0, 0)
    assert (tmp_path / "first").read_text() == "to-first\n"
    assert (tmp_path / "second").read_text() == "to-second\n"
    os.close(first)
    os.close(second)


def test_a_forked_child_ends_with_the_code_of_its_work() -> None:
    assert process.wait_status(process.fork_child(lambda: 5), timeout_s=60) == (5, 0)
    assert process.wait_status(process.fork_child(lambda: None), timeout_s=60) == (0, 0)


def test_a_detached_process_outlives_its_caller(tmp_path: Path) -> None:
    """It has its own session, no zombie is left, and a lock held by the caller is held on."""
    code = f"""
import os, signal, sys
from ctrl_exec.common import files, process
fd = files.open_lock({str(tmp_path / "lock")!r})
assert files.try_lock(fd)
def work():
    open({str(tmp_path / "sid")!r}, "w").write(f"{{os.getsid(0)}} {{os.getpid()}}")
    signal.pause()
print(process.detach(work), flush=True)
"""
    made = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    pid = int(made.stdout)
    try:
        eventually(lambda: (tmp_path / "sid").read_text().count(" ") == 1)
        session, own = map(int, (tmp_path / "sid").read_text().split())
        assert own == pid
        assert session not in (0, os.getsid(0))
        from ctrl_exec.common import files

        fd = files.open_lock(str(tmp_path / "lock"))
        assert not files.try_lock(fd)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: files.try_lock(fd))
        os.close(fd)
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


def test_detached_work_that_fails_ends_and_closes_what_it_was_told(tmp_path: Path) -> None:
    reading, writing = os.pipe()

    def work() -> None:
        try:
            os.fstat(reading)
        except OSError:
            os.write(writing, b"closed")
        raise ValueError("ends the process")

    process.detach(work, close=[reading])
    os.close(writing)
    assert os.read(reading, 10) == b"closed"
    assert os.read(reading, 10) == b""
    os.close(reading)


def test_unknown_accounts_are_named() -> None:
    with pytest.raises(ConfigError, match="no-such-user"):
        process.account_of("no-such-user", "")
    with pytest.raises(ConfigError, match="no-such-group"):
        process.account_of("root", "no-such-group")
    assert process.account_of("root", "") == (0, 0)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="changing the user needs root")
def test_privileges_are_dropped_for_good() -> None:
    def check() -> int:
        process.drop_privileges("nobody", "nogroup")
        uids, groups = os.getresuid(), os.getgroups()
        try:
            os.setuid(0)
        except PermissionError:
            return 0 if 0 not in uids and 0 not in groups else 1
        return 2

    assert process.wait_status(process.fork_child(check), timeout_s=60) == (0, 0)
    process.drop_privileges("")
    assert os.geteuid() == 0


def test_a_held_program_starts_only_once_its_pid_is_on_record(tmp_path: Path) -> None:
    """While `before_exec` works nothing is executed; its group is its own."""
    mark = tmp_path / "ran"
    seen: list[tuple[bool, int]] = []
    null = os.open(os.devnull, os.O_RDWR)
    pid = process.spawn_held(
        ["/bin/sh", "-c", f"ps -o pgid= $$ > {mark}"],
        environment={"PATH": "/usr/bin:/bin"},
        streams=(null, null, null),
        before_exec=lambda pid: seen.append((mark.exists(), pid)),
    )
    os.close(null)
    assert process.wait_status(pid, timeout_s=60) == (0, 0)
    assert seen == [(False, pid)]
    assert int(mark.read_text()) == pid


def test_a_held_program_is_not_executed_where_it_could_not_be_recorded(tmp_path: Path) -> None:
    """The error comes through, the process is gone."""
    mark = tmp_path / "ran"
    null = os.open(os.devnull, os.O_RDWR)
    before = open_descriptors()

    seen: list[int] = []

    def refuse(pid: int) -> None:
        seen.append(pid)
        raise StorageError("disk full", path="tasks.db")

    with pytest.raises(StorageError):
        process.spawn_held(
            ["/bin/touch", str(mark)], environment={}, streams=(null, null, null), before_exec=refuse
        )
    assert open_descriptors() == before
    os.close(null)
    assert not mark.exists()
    with pytest.raises(ChildProcessError):
        os.waitpid(seen[0], os.WNOHANG)


def test_a_held_program_that_cannot_be_executed_is_an_error() -> None:
    """With the kernel's reason, or Python's: never an exit code."""
    null = os.open(os.devnull, os.O_RDWR)
    for path, variables, words in (
        ("/no/such/program", {}, "No such file"),
        ("/bin/true", {"A": "\0"}, "null byte"),
        ("/bin/true", {"A": 1}, "int"),
    ):
        with pytest.raises(ProgramError, match=words):
            process.spawn_held(
                [path],
                environment=variables,  # type: ignore[arg-type]
                streams=(null, null, null),
                before_exec=lambda _: None,
            )
    os.close(null)
