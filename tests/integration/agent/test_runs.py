"""Runs that outlive something: their caller, their connection, the agent's child, the agent itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agents import AgentHost, receive, send
from tests.support.polling import eventually
from tests.support.processes import children_of

REQID = "00112233aabbccdd"


def waiting_script(host: AgentHost, options: str = "") -> Path:
    """A script `wait` that says its pid and goes on until the file that is returned appears."""
    go = host.directory / "go"
    host.script(
        "wait",
        f"echo $$ > {host.directory}/pid; while ! [ -e {go} ]; do sleep 0.02; done; echo done",
        options,
    )
    return go


def script_pid(host: AgentHost) -> int:
    """The pid of the waiting script, once it runs."""
    return int(eventually(lambda: (host.directory / "pid").read_text().strip()))


def start_run(host: AgentHost, reqid: str = REQID):
    """A connection with a sync run of `wait` in flight."""
    connection = host.connect()
    send(connection, "POST", "/run", {"script": "wait", "args": [], "reqid": reqid})
    script_pid(host)
    return connection


def test_every_run_is_on_record_from_before_its_start(host: AgentHost):
    go = waiting_script(host)
    with host.start(), start_run(host) as connection:
        running = host.result(REQID).json()
        assert running == {
            "reqid": REQID, "status": "running", "script": "wait", "owner": "main",
            "started": running["started"],
        }  # fmt: skip
        go.touch()
        answer = receive(connection).json()
        done = host.result(REQID).json()
        assert done.pop("finished") >= done.pop("started")
        assert done == {"reqid": REQID, "status": "done", "script": "wait", "owner": "main"} | answer
        path = host.state / f"runs/main/{REQID}.json"
        assert oct(path.stat().st_mode & 0o777) == "0o640"
        assert oct(path.parent.stat().st_mode & 0o777) == "0o750"


def test_a_script_runs_once_at_a_time_unless_its_entry_says_otherwise(host: AgentHost):
    go = waiting_script(host)
    host.script("free", "echo hi; sleep 0.3", "lock=no")
    with host.start(), start_run(host) as connection:
        other = "ffffffffffffffff"
        assert host.run("wait", reqid=other) == {
            "script": "wait", "exit": -1, "error": "script already running", "reqid": other,
        }  # fmt: skip
        answer = host.ask("POST", "/run", {"script": "wait", "args": [], "reqid": other, "async": True})
        assert (answer.status, answer.json()) == (
            409, {"script": "wait", "status": "busy", "reqid": other, "error": "script already running"},
        )  # fmt: skip
        assert host.result(other).status == 404
        go.touch()
        assert receive(connection).json()["stdout"] == "done\n"
        (host.directory / "pid").unlink()
        assert host.run("wait")["exit"] == 0
        first, second = host.connect(), host.connect()
        with first, second:
            for each in (first, second):
                send(each, "POST", "/run", {"script": "free", "args": [], "reqid": os.urandom(8).hex()})
            assert [receive(each).json()["exit"] for each in (first, second)] == [0, 0]


def test_a_detached_run_answers_at_once_and_leaves_its_result(host: AgentHost):
    go = waiting_script(host)
    with host.start():
        with host.connect() as connection:
            send(connection, "POST", "/run", {"script": "wait", "args": [], "reqid": REQID, "async": True})
            answer = receive(connection)
            assert (answer.status, answer.json()) == (
                202,
                {"script": "wait", "status": "accepted", "reqid": REQID},
            )
            # the connection is still ours: the detached run does not hold it
            send(connection, "POST", "/ping", {"reqid": REQID}, headers="Connection: close\r\n")
            assert receive(connection).status == 200
            assert connection.recv(1) == b""
        assert host.result(REQID).json()["status"] == "running"
        go.touch()
        done = eventually(lambda: (found := host.result(REQID).json())["status"] == "done" and found)
        assert (done["exit"], done["stdout"]) == (0, "done\n")
        eventually(lambda: children_of(host.running.pid) == [])  # type: ignore[union-attr]


def test_a_detached_run_that_cannot_be_executed_says_so_in_its_result(host: AgentHost):
    host.allow("gone", "/no/such/script")
    with host.start():
        answer = host.ask("POST", "/run", {"script": "gone", "args": [], "reqid": REQID, "async": True})
        assert answer.status == 202
        done = eventually(lambda: (found := host.result(REQID).json())["status"] == "done" and found)
        assert done["exit"] == 126
        assert "No such file" in done["error"]


def test_a_run_whose_caller_vanishes_goes_on_and_is_recorded(host: AgentHost):
    go = waiting_script(host)
    with host.start():
        connection = start_run(host)
        connection.close()
        assert host.result(REQID).json()["status"] == "running"
        go.touch()
        done = eventually(lambda: (found := host.result(REQID).json())["status"] == "done" and found)
        assert done["stdout"] == "done\n"


def test_the_same_request_id_cannot_run_twice_at_once(host: AgentHost):
    go = waiting_script(host, "lock=no")
    with host.start(), start_run(host) as connection:
        found = host.run("wait", reqid=REQID)
        assert found["exit"] == -1
        assert "still going on" in found["error"]
        go.touch()
        assert receive(connection).json()["exit"] == 0


def test_when_the_child_is_killed_the_lock_lives_as_long_as_the_script(host: AgentHost):
    go = waiting_script(host)
    with host.start():
        connection = start_run(host)
        (child,) = children_of(host.running.pid)  # type: ignore[union-attr]
        os.kill(child, signal.SIGKILL)
        assert connection.recv(1) == b""
        connection.close()
        assert host.run("wait")["error"] == "script already running"
        assert host.result(REQID).json()["status"] == "lost"
        go.touch()
        pid = script_pid(host)
        eventually(lambda: not Path(f"/proc/{pid}/fd").exists())
        assert host.run("wait")["exit"] == 0
        assert host.result(REQID).json()["status"] == "lost"


def test_a_daemon_that_escapes_does_not_keep_the_lock(host: AgentHost):
    pid_file = host.directory / "daemon"
    host.script(
        "daemon",
        f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 30' & while ! [ -s {pid_file} ]; do :; done",
    )
    with host.start():
        try:
            assert host.run("daemon")["exit"] == 0
            pid = int(pid_file.read_text())
            assert Path(f"/proc/{pid}").exists()
            pid_file.write_text("")
            assert host.run("daemon")["exit"] == 0
            second = int(pid_file.read_text())
        finally:
            for each in (pid, second):
                os.kill(each, signal.SIGKILL)


def test_orphans_of_scripts_are_reaped_by_the_child_that_serves_the_connection(host: AgentHost):
    host.script("orphan", "setsid sh -c 'sleep 0.1' & sleep 0.05")
    with host.start(), host.connect() as connection:
        for number in range(3):
            body = {"script": "orphan", "args": [], "reqid": f"{number:016x}"}
            send(connection, "POST", "/run", body)
            assert receive(connection).json()["exit"] == 0
            (child,) = children_of(host.running.pid)  # type: ignore[union-attr]
            eventually(lambda child=child: all(is_zombie(each) for each in children_of(child)))
            assert len(children_of(child)) <= 1


def is_zombie(pid: int) -> bool:
    """Whether it has ended and was not reaped."""
    return b") Z" in Path(f"/proc/{pid}/stat").read_bytes()


def test_a_restart_of_the_agent_leaves_running_scripts_alone(host: AgentHost):
    go = waiting_script(host)
    with host.start():
        connection = start_run(host)
        detached = "ffffffffffffffff"
        host.script("later", f"while ! [ -e {go} ]; do sleep 0.02; done; echo later")
        host.running.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
        eventually(lambda: "ACTION=reload" in host.log())
        assert (
            host.ask("POST", "/run", {"script": "later", "args": [], "reqid": detached, "async": True}).status
            == 202
        )
        port = host.port
        assert host.running.process.poll() is None  # type: ignore[union-attr]
        host.running.process.terminate()  # type: ignore[union-attr]
        assert host.running.process.wait(60) == 0  # type: ignore[union-attr]
        # the same port at once: no child or script holds the listening socket
        host.config.write_text(host.config.read_text().replace("port = 0", f"port = {port}"))
        host.start()
        assert host.port == port
        assert host.result(REQID).json()["status"] == "running"
        assert host.result(detached).json()["status"] == "running"
        assert host.run("wait")["error"] == "script already running"
        go.touch()
        assert receive(connection).json()["stdout"] == "done\n"
        connection.close()
        for reqid, output in ((REQID, "done\n"), (detached, "later\n")):
            done = eventually(
                lambda reqid=reqid: (found := host.result(reqid).json())["status"] == "done" and found
            )
            assert done["stdout"] == output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_fifty_runs_in_flight_survive_the_end_of_the_agents_parent(host: AgentHost, number: signal.Signals):
    go, begun = host.directory / "go", host.directory / "begun"
    begun.mkdir()
    host.script("wait", f"touch {begun}/$$; while ! [ -e {go} ]; do sleep 0.1; done; echo done", "lock=no")
    host.start()
    reqids = [f"{number:016x}" for number in range(50)]
    connections = [host.connect() for _ in range(25)]
    for connection, reqid in zip(connections, reqids[:25], strict=True):
        send(connection, "POST", "/run", {"script": "wait", "args": [], "reqid": reqid})
    for reqid in reqids[25:]:
        body = {"script": "wait", "args": [], "reqid": reqid, "async": True}
        assert host.ask("POST", "/run", body).status == 202
    eventually(lambda: len(os.listdir(begun)) == 50)
    os.kill(host.running.pid, number)  # type: ignore[union-attr]
    host.running.process.wait(60)  # type: ignore[union-attr]
    host.config.write_text(host.config.read_text().replace("port = 0", f"port = {host.port}"))
    host.start()
    assert {host.result(reqid).json()["status"] for reqid in reqids} == {"running"}
    go.touch()
    for connection in connections:
        assert receive(connection).json()["stdout"] == "done\n"
        connection.close()
    for reqid in reqids:
        eventually(lambda reqid=reqid: host.result(reqid).json()["status"] == "done")


def test_records_older_than_a_day_are_gone(host: AgentHost):
    host.script("hello", "echo hi")
    host.start()
    assert host.run("hello", reqid=REQID)["exit"] == 0
    folder = host.state / "runs/main"
    path = folder / f"{REQID}.json"
    (folder / ".tmp-1-dead").write_text("half")
    day_ago = path.stat().st_mtime - 86_401
    for each in (path, folder / ".tmp-1-dead"):
        os.utime(each, (day_ago, day_ago))
    assert host.result(REQID).status == 404
    os.utime(host.state / "runs/.purged", (day_ago, day_ago))
    host.ask("POST", "/ping", {"reqid": REQID})
    eventually(lambda: os.listdir(folder) == [])
    eventually(lambda: "ACTION=purge REMOVED=2" in host.log())


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", mount], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def fill(path: Path) -> None:
    """Write to the file until the disk is full, to the last block."""
    with path.open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)


@pytest.mark.root
def test_with_a_full_disk_nothing_is_run_and_the_error_is_clear(tiny_disk: Path, tmp_path: Path, ca):
    host = AgentHost(tmp_path / "host", ca)
    ran = tmp_path / "ran"
    host.script("touch", f"touch {ran}")
    host.script("much", "head -c 300000 /dev/zero | tr '\\0' x; exit 5")
    shutil.move(host.state, tiny_disk / "state")
    host.state = tiny_disk / "state"
    host.configure()
    with host.start():
        assert host.run("touch", reqid=REQID)["exit"] == 0
        ran.unlink()
        with pytest.raises(OSError, match="No space left"):
            fill(host.state / "filler")
        for is_async in (False, True):
            found = host.run("touch", reqid="aaaaaaaaaaaaaaaa", **{"async": is_async})
            assert found["exit"] == -1
            assert "No space left on device" in found["error"]
        assert not ran.exists()
        (host.state / "filler").unlink()
        # room for the start only: the answer is whole, the record keeps what it can
        found = host.run("much", reqid="bbbbbbbbbbbbbbbb")
        assert (found["exit"], len(found["stdout"])) == (5, 300_000)
        record = host.result("bbbbbbbbbbbbbbbb").json()
        assert (record["status"], record["exit"], record["stdout"]) == ("done", 5, "")
        assert "output could not be kept" in record["error"]
        assert host.run("touch")["exit"] == 0


def test_exit_codes_are_right_when_the_caller_ignored_sigchld(host: AgentHost):
    host.script("three", "exit 3")
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        host.start()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert host.run("three")["exit"] == 3
    host.ask("POST", "/run", {"script": "three", "args": [], "reqid": REQID, "async": True})
    eventually(lambda: host.result(REQID).json().get("exit") == 3)


def test_a_broken_record_is_an_error_and_no_crash(host: AgentHost):
    host.script("hello", "echo hi")
    with host.start():
        host.run("hello", reqid=REQID)
        path = host.state / f"runs/main/{REQID}.json"
        path.write_text("{half")
        assert host.result(REQID).status == 500
        path.write_text(json.dumps(["no", "record"]))
        assert host.result(REQID).status == 404
        assert host.run("hello", reqid=REQID)["exit"] == 0
        assert host.result(REQID).json()["status"] == "done"


@pytest.mark.long
def test_a_gigabyte_on_both_streams_takes_bounded_memory(host: AgentHost):
    host.script("flood", "head -c 1G /dev/zero & head -c 1G /dev/zero >&2; wait")
    with host.start(), host.connect() as connection:
        connection.settimeout(120)
        send(connection, "POST", "/run", {"script": "flood", "args": [], "reqid": REQID})
        (child,) = eventually(lambda: children_of(host.running.pid))  # type: ignore[union-attr]
        found = receive(connection).json()
        peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{child}/status").read_text())
        assert found["exit"] == 0
        assert found["truncated"] == {"stdout": (1 << 30) - (10 << 20), "stderr": (1 << 30) - (10 << 20)}
        assert peak is not None
        assert int(peak[1]) < 400 * 1024
