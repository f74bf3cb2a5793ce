"""Cancel on the real agent: nothing that the script has started lives on, whatever it does to be left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.agents import AgentHost, receive, send
from tests.support.polling import eventually

REQID = "00112233aabbccdd"
# a mark in argv, by which the test finds its processes in /proc and nobody else's
STUBBORN = """#!{python} -IS
import os, signal, sys, time
mark = sys.argv[1]
def stay(seconds):
    os.execv(sys.executable, [sys.executable, "-ISc", "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(" + str(seconds) + ")", mark])
def child(*steps):
    if os.fork() == 0:
        for step in steps:
            step()
        stay(60)
def fork_off():
    if os.fork():
        os._exit(0)
def close_all():
    os.closerange(0, 256)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("begun", flush=True)
child()
child(fork_off)
child(os.setsid)
child(os.setsid, fork_off)
child(os.setsid, fork_off, close_all)
child(fork_off, os.setsid, fork_off, close_all)
child(os.setpgrp)
while True:
    child(os.setsid, fork_off)
    time.sleep(0.2)
"""


def marked(mark: str) -> list[int]:
    """The pids of living processes that carry the mark."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in words:
            found.append(int(entry))
    return found


def stubborn(host: AgentHost, options: str = "") -> str:
    """A script `stubborn` that does all it can to be left alone; the mark of its processes."""
    mark = f"mark-{os.urandom(8).hex()}"
    host.script("stubborn", STUBBORN.replace("{python}", sys.executable), options)
    return mark


@pytest.fixture
def killed():
    """Marks whose processes are ended with the test, whatever became of it."""
    marks: list[str] = []
    yield marks
    for mark in marks:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)


def check_cancel_at(host: AgentHost, mark: str, reqid: str, moment_s: float) -> None:
    """Run `stubborn`, cancel it after that time, and find nothing of it 6 s later."""
    with host.connect() as connection:
        send(
            connection, "POST", "/run", {"script": "stubborn", "args": [mark], "reqid": reqid, "stream": True}
        )
        eventually(lambda: host.result(reqid).status == 200)
        begun = time.monotonic()
        eventually(lambda: time.monotonic() - begun >= moment_s)
        asked = time.monotonic()
        assert host.cancel(reqid).json() == {"status": "ok", "ended": True, "reqid": reqid}
        took_s = time.monotonic() - asked
        assert marked(mark) == []
        result = json.loads(receive(connection).body.splitlines()[-1])
        assert (result["exit"], result["error"]) == (126, "cancelled")
        record = host.result(reqid).json()
        assert (record["status"], record["exit"], record["error"]) == ("done", 126, "cancelled")
        assert took_s < 60


def test_nothing_of_a_stubborn_script_is_alive_after_a_cancel(host: AgentHost, killed: list[str]):
    mark = stubborn(host)
    killed.append(mark)
    with host.start():
        check_cancel_at(host, mark, REQID, 0.3)


@pytest.mark.long
def test_nothing_of_it_is_alive_at_twenty_random_moments(host: AgentHost, killed: list[str]):
    from concurrent.futures import ThreadPoolExecutor

    mark = stubborn(host, "lock=no")
    moments = [random.uniform(0, 2) for _ in range(20)]
    marks = [f"{mark}-{number}" for number in range(20)]
    killed += [mark, *marks]
    with host.start(), ThreadPoolExecutor(5) as pool:
        waiting = [
            pool.submit(check_cancel_at, host, each, f"{number:016x}", moment)
            for number, (each, moment) in enumerate(zip(marks, moments, strict=True))
        ]
        for each in waiting:
            each.result()
        assert marked(mark) == []


def test_a_script_that_heeds_term_ends_at_once_and_its_output_is_kept(host: AgentHost):
    host.script("kind", "trap 'echo bye; exit 9' TERM; echo hello; sleep 60 & wait")
    with (
        host.start(),
        host.streaming(
            "POST", "/run", {"script": "kind", "args": [], "reqid": REQID, "stream": True}
        ) as stream,
    ):
        next(stream.lines())
        assert host.cancel(REQID).json()["ended"] is True
        result = stream.finish()
        assert (result["exit"], result["error"], result["stdout"]) == (126, "cancelled", "hello\nbye\n")
        assert "ACTION=cancel" in host.log()
        assert host.cancel(REQID).json()["ended"] is True
        assert host.run("kind", reqid=REQID)["error"] == "cancelled"


def test_detached_and_plain_runs_can_be_cancelled(host: AgentHost):
    host.script("sleep", "sleep 60")
    with host.start():
        body = {"script": "sleep", "args": [], "reqid": REQID}
        assert host.ask("POST", "/run", body | {"async": True}).status == 202
        assert host.cancel(REQID).json()["ended"] is True
        other = "ffffffffffffffff"
        with host.connect() as connection:
            send(connection, "POST", "/run", body | {"reqid": other})
            eventually(lambda: host.result(other).status == 200)
            assert host.cancel(other).json()["ended"] is True
            assert receive(connection).json()["error"] == "cancelled"
        # the lock is free again
        host.script("sleep", "exit 5")
        assert host.run("sleep")["exit"] == 5


def test_a_cancel_that_crosses_the_end_is_no_error(host: AgentHost):
    host.script("hello", "echo hi")
    with host.start():
        assert host.run("hello", reqid=REQID)["exit"] == 0
        assert host.cancel(REQID).json() == {"status": "ok", "ended": True, "reqid": REQID}
        assert host.result(REQID).json()["exit"] == 0


def test_a_late_cancel_does_not_end_the_next_run_of_the_same_process(host: AgentHost):
    host.script("hello", "echo hi")
    go = host.directory / "go"
    host.script("later", f"while ! [ -e {go} ]; do sleep 0.02; done; echo later")
    with host.start(), host.connect() as connection:
        send(connection, "POST", "/run", {"script": "hello", "args": [], "reqid": REQID})
        assert receive(connection).json()["exit"] == 0
        send(connection, "POST", "/run", {"script": "later", "args": [], "reqid": "ffffffffffffffff"})
        eventually(lambda: host.result("ffffffffffffffff").status == 200)
        carrier = int(
            json.loads((host.state / "runs/main/ffffffffffffffff.json").read_text())["carrier"].partition(
                "-"
            )[0]
        )
        (host.state / f"runs/main/{REQID}.cancel").touch()
        os.kill(carrier, signal.SIGUSR2)
        go.touch()
        assert receive(connection).json()["stdout"] == "later\n"
        os.kill(carrier, signal.SIGUSR2)  # and none that is idle
        send(connection, "POST", "/ping", {"reqid": REQID})
        assert receive(connection).status == 200


def test_a_run_is_cancelled_by_its_owner_only_and_must_exist(host: AgentHost):
    other = host.ca.dispatcher("other")
    host.trust(other.serial, "other")
    host.script("wait", f"while ! [ -e {host.directory}/go ]; do sleep 0.02; done")
    with host.start():
        unknown = {"status": "unknown", "reqid": REQID}
        assert (host.cancel(REQID).status, host.cancel(REQID).json()) == (404, unknown)
        assert (
            host.ask("POST", "/run", {"script": "wait", "args": [], "reqid": REQID, "async": True}).status
            == 202
        )
        refused = host.cancel(REQID, leaf=other)
        assert (refused.status, refused.json()) == (404, unknown)
        assert host.result(REQID).json()["status"] == "running"
        for wrong in ({}, {"reqid": "../x"}, {"reqid": 5}, []):
            assert host.ask("POST", "/cancel", wrong).status == 400
        (host.directory / "go").touch()
        eventually(lambda: host.result(REQID).json()["status"] == "done")


def test_what_a_killed_carrier_left_can_be_ended_and_what_it_ran_before_is_left_alone(
    host: AgentHost, killed: list[str]
):
    mark = f"mark-{os.urandom(8).hex()}"
    killed.append(mark)
    host.script(
        "daemon", f"setsid {sys.executable} -ISc 'import time; time.sleep(60)' {mark}-daemon & sleep 0.1"
    )
    host.script("wait", f"{sys.executable} -ISc 'import time; time.sleep(60)' {mark} & wait")
    killed.append(f"{mark}-daemon")
    with host.start(), host.connect() as connection:
        send(connection, "POST", "/run", {"script": "daemon", "args": [], "reqid": "ffffffffffffffff"})
        assert receive(connection).json()["exit"] == 0
        eventually(lambda: marked(f"{mark}-daemon"))
        send(connection, "POST", "/run", {"script": "wait", "args": [], "reqid": REQID})
        eventually(lambda: marked(mark) and (host.state / f"runs/main/{REQID}.script").exists())
        record = json.loads((host.state / f"runs/main/{REQID}.json").read_text())
        os.kill(int(record["carrier"].partition("-")[0]), signal.SIGKILL)
        eventually(lambda: host.result(REQID).json()["status"] == "lost")
        assert marked(mark) != []
        assert host.cancel(REQID).json()["ended"] is True
        assert marked(mark) == []
        assert marked(f"{mark}-daemon") != []


def test_a_daemon_of_an_earlier_run_survives_the_cancel_of_a_later_one_on_its_connection(
    host: AgentHost, killed: list[str]
):
    mark = f"mark-{os.urandom(8).hex()}"
    killed.append(mark)
    host.script("daemon", f"setsid {sys.executable} -ISc 'import time; time.sleep(60)' {mark} & sleep 0.1")
    host.script("sleep", "sleep 60")
    with host.start(), host.connect() as connection:
        send(connection, "POST", "/run", {"script": "daemon", "args": [], "reqid": "ffffffffffffffff"})
        assert receive(connection).json()["exit"] == 0
        eventually(lambda: marked(mark))
        send(connection, "POST", "/run", {"script": "sleep", "args": [], "reqid": REQID})
        eventually(lambda: host.result(REQID).status == 200)
        assert host.cancel(REQID).json()["ended"] is True
        assert receive(connection).json()["error"] == "cancelled"
        assert marked(mark) != []
