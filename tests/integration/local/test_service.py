"""`ctrl-exec-local` as a real process, with commands that end in every way, and killed at every place."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctrl_exec.common.descendants import started_at
from ctrl_exec.common.errors import LostCommandError, ProgramError, ServiceError, StorageError
from ctrl_exec.common.process import is_group_alive
from ctrl_exec.local.channel import Channel
from ctrl_exec.local.client import LocalService
from ctrl_exec.local.keeper import end_left_group, take_mark
from ctrl_exec.local.messages import run_message
from ctrl_exec.local.order import SHELL, CommandEnd, CommandOrder
from tests.support.descriptors import open_descriptors
from tests.support.local_service import (
    OURS,
    USER,
    Heard,
    Works,
    keeper_of,
    open_home,
    seconds_of_sleep,
    wait_gone,
)
from tests.support.polling import eventually
from tests.support.processes import Running, children_of, command, environment, run

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
nap = seconds_of_sleep()


@pytest.fixture(scope="module")
def works() -> Iterator[Works]:
    """A service for the tests that do it no harm."""
    with open_home() as home:
        made = Works(home)
        with made.start():
            yield made


@pytest.fixture
def fragile() -> Iterator[Works]:
    """A service of one's own."""
    with open_home() as home:
        made = Works(home)
        made.start()
        try:
            yield made
        finally:
            assert made.running is not None
            made.running.stop()


@pytest.fixture
def heard(works: Works) -> Heard:
    """A command's hearer."""
    return Heard(works)


def test_a_command_gets_an_environment_that_is_built_up(heard: Heard) -> None:
    """Its account's, what the scheduler sends, and nothing of the service's own."""
    end = heard.run("env | sort; pwd; umask; cat; echo err >&2; exit 7", CPS_KEY="a b; c", TZ="UTC")
    assert end == CommandEnd(7)
    *lines, directory, umask = heard.text().splitlines()
    account = pwd.getpwnam(USER)
    assert (directory, umask) == ("/", "0022")
    assert set(lines) - {f"SHLVL={n}" for n in range(3)} - {"_=/usr/bin/env", "OLDPWD=/"} == {
        "CPS_KEY=a b; c", "TZ=UTC", "PWD=/", f"HOME={account.pw_dir}", f"SHELL={account.pw_shell}",
        f"USER={USER}", f"LOGNAME={USER}", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }  # fmt: skip
    assert heard.output[2] == b"err\n"


@needs_root
def test_it_runs_as_its_user_and_reads_no_directory_that_is_closed_to_others(
    heard: Heard, tmp_path: Path
) -> None:
    """With that user's groups; `/dev/stderr` can be opened, which another user's pipe could not."""
    secret = tmp_path / "etc" / "secrets.key"
    secret.parent.mkdir(mode=0o750)
    secret.write_text("key")
    line = f"id -un; id -u; id -G; cat {secret} 2>/dev/null || ls {secret.parent} 2>/dev/null || echo no"
    assert heard.run(f"{line}; echo here > /dev/stderr") == CommandEnd(0)
    account = pwd.getpwnam(USER)
    groups = sorted(os.getgrouplist(USER, account.pw_gid))
    name, uid, shown, answer = heard.text().splitlines()
    assert (name, int(uid), answer) == (USER, account.pw_uid, "no")
    assert sorted(map(int, shown.split())) == groups
    assert heard.output[2] == b"here\n"


def test_its_group_is_on_record_before_anything_is_executed(works: Works, tmp_path: Path) -> None:
    """Where it can't be kept, nothing is executed."""
    mark = works.home / "mark"
    seen = []

    def refuse(pid: int, started: int) -> None:
        seen.append((pid, started))
        assert started_at(pid) == started
        assert not mark.exists()
        raise StorageError("disk full", path="tasks.db")

    with pytest.raises(StorageError):
        works.client.run_command(
            CommandOrder(("/bin/bash", "-c", f"touch {mark}"), {}),
            on_output=lambda _stream, _chunk: None,
            wants_end=lambda: False,
            before_exec=refuse,
        )
    eventually(lambda: not is_group_alive(seen[0][0]))
    assert not mark.exists()


def test_a_secret_is_in_no_command_line_and_no_log(works: Works, heard: Heard) -> None:
    """Neither of the keeper nor of what it executes."""
    secret = "s3cr3t-of-the-day"
    line = 'test -n "$CPS_KEY"; for each in /proc/[0-9]*/cmdline; do tr "\\0" " " < $each; echo; done 2>/dev/null'
    assert heard.run(line, CPS_KEY=secret).exit_code == 0
    assert "/bin/bash -c" in heard.text()
    assert secret not in heard.text()
    assert secret not in works.log()
    with pytest.raises(ProgramError) as refused:
        heard.run("true", LD_PRELOAD=secret)
    assert "LD_PRELOAD" in str(refused.value)
    assert secret not in str(refused.value) + works.log()


@pytest.mark.parametrize("first", ["", pytest.param("trap '' TERM; ", marks=pytest.mark.long)])
def test_at_its_time_everything_is_ended(heard: Heard, first: str) -> None:
    """Also what has left its group and its parent, and (after some seconds) what ignores TERM."""
    left = nap()
    line = f"{first}setsid -f sleep {left}; (sleep {left} &); echo begun; while :; do sleep 0.1; done"
    end = heard.run(line, timeout_s=0.5)
    assert (end.timed_out, end.is_gone) == (True, True)
    assert heard.text() == "begun\n"
    wait_gone(f"sleep\0{left}")


@pytest.mark.long
@needs_root
def test_what_has_become_another_user_is_said_to_be_left(works: Works, heard: Heard) -> None:
    """It is not ours to end, as what `sudo` starts; nobody calls it gone before it is."""
    setpriv = shutil.which("setpriv") or pytest.skip("there is no setpriv")
    become_root = works.home / "become-root"
    shutil.copy(setpriv, become_root)
    os.chown(become_root, 0, pwd.getpwnam(USER).pw_gid)
    become_root.chmod(0o4750)  # nobody else's for the time of this test
    try:
        if heard.run(f"{become_root} --reuid 0 id -u").exit_code or heard.text() != "0\n":
            pytest.skip("programs of this file system give no privileges")
        end = heard.run(f"{become_root} --reuid 0 sleep {nap()}; true", timeout_s=0.5)
        assert (end.timed_out, end.is_gone) == (True, False)
        assert not works.client.end_group(*heard.group)
        os.killpg(heard.group[0], signal.SIGKILL)
        assert works.client.end_group(*heard.group)
    finally:
        become_root.unlink()


def test_it_ends_when_it_is_wished_to(heard: Heard) -> None:
    """TERM first: it may say goodbye, and all of that is heard."""
    line = "trap 'echo bye; exit 3' TERM; echo begun; while :; do sleep 0.05; done"
    end = heard.run(line, wants_end=lambda: bool(heard.output[1]))
    assert end == CommandEnd(3, was_ended=True)
    assert heard.text() == "begun\nbye\n"


def test_what_it_leaves_in_the_background_is_ended_with_it(heard: Heard) -> None:
    """Though it holds its pipes open; a session of its own is left alone, as a daemon's."""
    left, daemon = nap(), nap()
    assert heard.run(f"sleep {left} & setsid -f sleep {daemon}; echo done") == CommandEnd(0)
    assert heard.text() == "done\n"
    wait_gone(f"sleep\0{left}")
    assert heard.run(f"pkill -fx 'sleep {daemon}'") == CommandEnd(0)


@pytest.mark.long
def test_all_of_a_large_output_arrives(heard: Heard) -> None:
    """50 MiB of each stream, at once."""
    size = 50 << 20
    assert heard.run(f"head -c {size} /dev/zero & head -c {size} /dev/zero >&2; wait") == CommandEnd(0)
    assert (len(heard.output[1]), len(heard.output[2])) == (size, size)


def test_what_can_not_be_executed_fails_by_name(heard: Heard) -> None:
    """No program, a relative path, a directory, a NUL byte; the service goes on."""
    for program, words in (
        ("no-such-program-anywhere", "is not to be found"),
        ("./x", "expected an absolute path"),
        ("/tmp", "cannot be executed"),
        ("true\0", "NUL"),
    ):
        with pytest.raises(ProgramError, match=words):
            heard.execute(CommandOrder((program,), {}))
    with pytest.raises(ProgramError, match="cannot be executed"):
        heard.execute(CommandOrder(("true", "x" * (256 << 10)), {}))
    assert heard.execute(CommandOrder(("true",), {})) == CommandEnd(0)


def test_another_user_than_local_user_is_refused(works: Works) -> None:
    """Whoever configured one does not get the other; about says which it is."""
    assert works.client.about() == USER
    for name in ("daemon", "no-such-user-anywhere"):
        with pytest.raises(ProgramError, match="ctrl-exec-local runs as"):
            _execute(LocalService(works.client.path, name))


@needs_root
def test_a_stranger_is_refused(works: Works) -> None:
    """By the mode of the socket, and by the kernel's word where the mode was opened."""
    about = works.socket.stat()
    assert (about.st_mode & 0o777, about.st_uid) == (0o600, os.geteuid())
    for mode in (0o600, 0o666):
        works.socket.chmod(mode)
        os.seteuid(1)
        try:
            with pytest.raises(ServiceError, match=r"not to be reached|hung up|broke"):
                _ask_as_anyone(works)
        finally:
            os.seteuid(0)
            works.socket.chmod(0o600)
    assert "user 1 may not have commands executed" in works.log()


def _ask_as_anyone(works: Works) -> None:
    """Without our side's own look at who owns the socket."""
    stream = socket.socket(socket.AF_UNIX)
    channel = Channel(stream)
    try:
        try:
            stream.connect(str(works.socket))
        except OSError as error:
            raise ServiceError(f"not to be reached ({error})") from error
        channel.send(run_message(CommandOrder(("true",), {}), USER))
        channel.receive()
    finally:
        channel.close()


def test_a_socket_of_somebody_else_gets_no_secret(tmp_path: Path) -> None:
    """Nor is one waited for that is not there: the words name the socket and the unit."""
    missing = LocalService(str(tmp_path / "none.sock"), USER)
    for ask in (missing.about, lambda: _execute(missing), lambda: missing.end_group(2, 0)):
        with pytest.raises(ServiceError, match=r"none\.sock .*ctrl-exec-local\.socket"):
            ask()
    if os.geteuid() == 0:
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            os.chown(path, 65534, 65534)
            with pytest.raises(ServiceError, match="belongs to another user"):
                _execute(LocalService(str(path), USER))


def _execute(service: LocalService) -> CommandEnd:
    """Have `true` executed."""
    return service.run_command(
        CommandOrder(("true",), {}),
        on_output=lambda _stream, _chunk: None,
        wants_end=lambda: False,
        before_exec=lambda _pid, _started: None,
    )


def test_whoever_hangs_up_ends_the_command(works: Works) -> None:
    """As a carrier does that is killed: everything goes, and only then is the group called gone."""
    pid, started, left = _abandon(works, signal.SIGKILL)
    assert works.client.end_group(pid, started)
    assert not is_group_alive(pid)
    wait_gone(f"sleep\0{left}")
    assert works.client.end_group(pid, started)


def _abandon(works: Works, number: int, first: str = "") -> tuple[int, int, str]:
    """Have a client of ours begin a command and die of a signal: its group, and what it slept for."""
    left = nap()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            heard = Heard(works)

            def say(_stream: int, _chunk: bytes) -> None:
                os.write(writing, f"{heard.group[0]} {heard.group[1]}".encode())

            works.client.run_command(
                CommandOrder((SHELL, "-c", f"{first}setsid -f sleep {left}; echo x; exec sleep {left}"), {}),
                on_output=say,
                wants_end=lambda: False,
                before_exec=heard.note,
            )
        finally:
            os._exit(1)
    os.close(writing)
    try:
        pid, started = map(int, os.read(reading, 64).split())
    finally:
        os.close(reading)
    os.kill(child, number)
    os.waitpid(child, 0)
    return pid, started, left


@pytest.mark.long
def test_commands_outlive_a_restart_of_the_service(fragile: Works) -> None:
    """TERM, and KILL too: who executes them goes on and says how they ended."""
    for stop in (_terminate, _kill):
        heard = Heard(fragile)
        gate = fragile.home / "gate"
        gate.unlink(missing_ok=True)

        def restart(gate: Path = gate, heard: Heard = heard, stop: Callable[[Running], None] = stop) -> bool:
            if heard.output[1] and not gate.exists():
                assert fragile.running is not None
                stop(fragile.running)
                fragile.start()
                gate.touch()
            return False

        assert heard.run(
            f"echo begun; until test -e {gate}; do sleep 0.05; done; exit 5", wants_end=restart
        ) == (CommandEnd(5))


def _terminate(service: Running) -> None:
    assert service.stop() == 0


def _kill(service: Running) -> None:
    service.process.kill()
    service.process.wait(60)


def test_a_killed_keeper_is_no_success_and_its_group_is_ended(fragile: Works) -> None:
    """Nobody says how the command ended; whoever asks has the group ended first."""
    heard = Heard(fragile)

    def kill() -> bool:
        if heard.output[1]:
            os.kill(keeper_of(heard.group[0]), signal.SIGKILL)
        return False

    with pytest.raises(LostCommandError) as lost:
        heard.run("echo begun; trap '' HUP; sleep 600 & sleep 600", wants_end=kill)
    assert (lost.value.pid, lost.value.started) == heard.group
    assert fragile.client.end_group(*heard.group)
    assert not is_group_alive(heard.group[0])


def test_a_keeper_that_is_told_to_stop_ends_its_command(works: Works, heard: Heard) -> None:
    """As at the shutdown of the machine; the end is said."""

    def stop() -> bool:
        if heard.output[1]:
            os.kill(keeper_of(heard.group[0]), signal.SIGTERM)
        return False

    end = heard.run("echo begun; sleep 600", wants_end=stop)
    assert (end.was_ended, end.signal) == (True, signal.SIGTERM)


def test_a_keeper_that_its_command_has_stopped_does_not_hold_up_the_end(works: Works) -> None:
    """It is of the same user, who may stop it: it is continued, and then ends what only it can find."""
    pid, started, left = _abandon(works, signal.SIGKILL, first="kill -STOP $PPID; ")
    assert works.client.end_group(pid, started)
    assert not is_group_alive(pid)
    wait_gone(f"sleep\0{left}")


def test_a_mark_that_a_stranger_has_taken_does_not_hold_up_the_end() -> None:
    """Anybody may bind a name: the group is ended all the same, and then it is gone."""
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.pause()
    try:
        eventually(lambda: os.getpgid(child) == child)
        started = started_at(child)
        mark = take_mark(child, started)
        assert mark is not None
        with mark:
            assert end_left_group(child, started, patience_s=0.1)
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_a_number_that_is_another_processes_by_now_is_left_alone(works: Works) -> None:
    """Who started at another moment is not meant."""
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.pause()
    try:
        assert works.client.end_group(child, started_at(child) + 1)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_nonsense_is_refused_and_the_service_goes_on(works: Works) -> None:
    """By name, or by hanging up; none of it is executed."""
    for message, words in (
        ({}, "expected to be asked"),
        ({"ask": ["run"]}, "expected to be asked"),
        ({"ask": "run", "user": USER, "argv": [], "environment": {}}, "expected words"),
        ({"ask": "run", "user": USER, "argv": ["true"], "environment": {"PATH": "/x"}}, "PATH"),
        ({"ask": "run", "user": USER, "argv": ["true"], "environment": [], "timeout_s": 1}, "an object"),
        ({"ask": "run", "user": USER, "argv": ["true"], "environment": {}, "timeout_s": True}, "a number"),
        ({"ask": "end-group", "pid": 1, "started": 0}, "pid of a process"),
        ({"ask": "end-group", "pid": "2", "started": 0}, "pid of a process"),
    ):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(works.socket))
            channel = Channel(stream)
            channel.send(message)
            assert words in channel.receive()["failure"]
    for raw in (b"\0\0\0\2{]", b"\xff\xff\xff\xff", b"\0\0\0\2[]", b""):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(works.socket))
            stream.sendall(raw)
            stream.shutdown(socket.SHUT_WR)
            stream.settimeout(60)
            while stream.recv(4096):
                pass
    assert works.client.about() == USER


def test_descriptors_and_processes_are_given_back(works: Works) -> None:
    """After thirty commands there are no more than before."""
    assert works.running is not None
    pid = works.running.pid
    eventually(lambda: not children_of(pid))
    before = _descriptors_of(pid)
    ours = open_descriptors()
    for _ in range(30):
        assert Heard(works).execute(CommandOrder(("true",), {})) == CommandEnd(0)
    assert open_descriptors() == ours
    eventually(lambda: not children_of(pid))
    assert _descriptors_of(pid) == before


def _descriptors_of(pid: int) -> int:
    """How many it has open, as far as it shows them: to others of its user it does not."""
    return len(os.listdir(f"/proc/{pid}/fd")) if os.geteuid() == 0 else 0


def test_systemd_hands_over_the_socket(tmp_path: Path) -> None:
    """Then none is needed on the command line, and none is made or removed."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        line = f'exec 3<&{listener.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        words = command("ctrl-exec-local", "--as", USER, "--for", OURS)
        service = subprocess.Popen(
            ["/bin/bash", "-c", line, "bash", *words],
            env=environment(), pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        assert LocalService(str(path), USER).about() == USER
    finally:
        service.terminate()
        assert service.wait(60) == 0
    assert path.exists()


def test_wrong_words_stop_it_before_it_listens(tmp_path: Path) -> None:
    """With the exit codes of the other daemons."""
    path = tmp_path / "s"
    for words, code, says in (
        (["--sock"], 2, "is not understood"),
        (["--socket", path, "--as", USER, "--for", "no-such-user-anywhere"], 78, "there is no user"),
        (["--socket", path, "--as", "no-such-user-anywhere", "--for", OURS], 78, "no-such-user-anywhere"),
        (["--as", USER, "--for", OURS], 78, "--socket FILE"),
        (["--socket", tmp_path, "--as", USER, "--for", OURS], 1, "cannot listen"),
    ):
        made = run("ctrl-exec-local", *words)
        assert (made.returncode, path.exists()) == (code, False), made.stderr
        assert says in made.stderr
    if os.geteuid() == 0:
        made = run("ctrl-exec-local", "--socket", path, "--for", OURS)
        assert (made.returncode, path.exists()) == (78, False)
        assert "--as USER" in made.stderr
    assert run("ctrl-exec-local", "--version").stdout.startswith("ctrl-exec-local ")
    assert "--for USER" in run("ctrl-exec-local", "--help").stdout
