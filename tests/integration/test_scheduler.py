"""The scheduler as a process: what it does by the clock, and what happens to it."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrl_exec.operations.run import RunRequest
from ctrl_exec.services.results import ResultStore
from tests.integration.runs.dispatching import Bench, killed_at
from tests.support.emulated import Fleet
from tests.support.polling import eventually
from tests.support.processes import Running, command, environment, needs_other_user, run


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("agents"))
    fleet.add_many(2)
    with fleet:
        yield fleet


@pytest.fixture
def bench(tmp_path: Path, agents: Fleet) -> Iterator[Bench]:
    made = Bench(tmp_path, agents)
    yield made
    made.close()


def start(bench: Bench, **settings: object) -> Running:
    bench.settings |= settings
    scheduler = Running("ctrl-exec-scheduler", "--config", bench.conf, log_path=bench.home / "scheduler.log")
    scheduler.wait_for("ACTION=scheduler-start")
    return scheduler


def test_it_recovers_what_a_dead_carrier_left(bench: Bench) -> None:
    """A run whose carrier was killed is completed without anybody asking."""
    killed_at(bench, "in agents.run", RunRequest(("host-0001",), "job"))
    [reqid] = bench.reqids()
    with start(bench) as scheduler:
        scheduler.wait_for("ACTION=recovery COMPLETED=1", timeout_s=90)  # the second round, on a slow machine
        record = bench.dispatcher().results.load(reqid)
        assert record is not None
        assert record.complete
        assert bench.status(reqid).counts == {"ok": 1}


@pytest.mark.long
def test_it_purges_by_cron(bench: Bench) -> None:
    """Records go when their retention is over, also when nobody asks."""
    old, young = bench.run("host-0001"), bench.run("host-0001")
    store = ResultStore(str(bench.runs), 86400)
    marker = next(path for path in (bench.runs / "done").iterdir() if path.name.endswith(old.reqid))
    marker.rename(marker.with_name(f"{int(time.time()) - 90_000:08x}-{old.reqid}"))
    with start(bench, purge_cron="* * * * *") as scheduler:
        scheduler.wait_for("ACTION=purge .*RUNS=1", timeout_s=90)
    assert store.load(old.reqid) is None
    assert store.load(young.reqid) is not None


def figures(bench: Bench) -> dict[str, dict[str, float]]:
    """What it says of its duties, once a round of recovery is over."""
    path = bench.home / "state" / "metrics" / "ctrl-exec-scheduler.json"
    found = eventually(lambda: "rounds" in path.read_text() and json.loads(path.read_text())["duties"])
    assert isinstance(found, dict)
    return found


def test_term_ends_it_at_once(bench: Bench) -> None:
    """SIGTERM and SIGINT end it with exit code 0."""
    for number in (signal.SIGTERM, signal.SIGINT):
        with start(bench) as scheduler:
            assert scheduler.stop(number) == 0
            assert "ACTION=scheduler-stop" in scheduler.log()


def test_it_tells_the_service_manager(bench: Bench) -> None:
    """READY at the start, WATCHDOG in between, RELOADING and READY at a reload, STOPPING at the end."""
    address = bench.home / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(60)
        told = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "400000"}
        with Running(
            "ctrl-exec-scheduler", "--config", bench.conf, log_path=bench.home / "scheduler.log", env=told
        ) as scheduler:
            assert manager.recv(100) == b"READY=1"
            assert manager.recv(100) == b"WATCHDOG=1"
            os.kill(scheduler.pid, signal.SIGHUP)
            words = list(iter(lambda: manager.recv(100).split(b"\n")[0], b"READY=1"))
            assert words[-1] == b"RELOADING=1"
            scheduler.stop()
            manager.setblocking(False)
            rest = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    rest.append(manager.recv(100))
            assert rest[-1] == b"STOPPING=1"


def test_killed_and_started_again(bench: Bench) -> None:
    """kill -9 leaves nothing that stops the next one."""
    with start(bench) as scheduler:
        scheduler.kill()
    with start(bench) as scheduler:
        assert scheduler.process.poll() is None


def test_reload(bench: Bench) -> None:
    """SIGHUP takes the new configuration; a bad one is logged and the old one kept."""
    with start(bench) as scheduler:
        good = bench.conf.read_text()
        bench.conf.write_text(good + "nonsense = 1\n")
        (bench.home / "etc" / "ctrl-exec.conf").write_text(good + "nonsense = 1\n")
        os.kill(scheduler.pid, signal.SIGHUP)
        scheduler.wait_for("ACTION=reload ERROR=.*nonsense")
        (bench.home / "etc" / "ctrl-exec.conf").write_text(good + "purge_cron = */7 * * * *\n")
        os.kill(scheduler.pid, signal.SIGHUP)
        scheduler.wait_for("ACTION=reload RESULT=ok")
        assert scheduler.process.poll() is None


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--config", "/nonexistent/ctrl-exec.conf"], 78, "/nonexistent/ctrl-exec.conf"),
        (["--config"], 2, "--config"),
        (["--bogus"], 2, "--bogus"),
        (["extra"], 2, "extra"),
        (["--version"], 0, "ctrl-exec-scheduler"),
        (["--help"], 0, "usage"),
    ],
)
def test_command_line(words: list[str], code: int, text: str) -> None:
    """Bad words are 2, a bad configuration is 78, both with a line that names it."""
    ended = run("ctrl-exec-scheduler", *words)
    assert ended.returncode == code
    assert text in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("expression", ["61 * * * *", "* * * * MON-XYZ"])
def test_a_bad_cron_expression_refuses_to_start(bench: Bench, expression: str) -> None:
    """Exit 78, naming it."""
    bench.settings["purge_cron"] = expression
    ended = run("ctrl-exec-scheduler", "--config", bench.conf)
    assert ended.returncode == 78
    assert "Traceback" not in ended.stderr


def test_sigchld_ignored_by_who_starts_it(bench: Bench) -> None:
    """An inherited SIG_IGN changes nothing: its children's ends are read, and its figures say so."""
    log = bench.home / "scheduler.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["sh", "-c", 'trap "" CHLD; exec "$@"', "sh", *command("ctrl-exec-scheduler", "--config", bench.conf)],
            env=environment(), stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        assert figures(bench)["recovery"]["failed"] == 0
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_a_round_that_fails_does_not_end_it(bench: Bench) -> None:
    """A damaged record is said, and the others are looked after."""
    killed_at(bench, "in agents.run", RunRequest(("host-0001",), "job"))
    (bench.runs / "0123456789abcdef.json").write_text("{")
    (bench.runs / "0123456789abcdef.lock").write_text("")
    with start(bench) as scheduler:
        scheduler.wait_for("0123456789abcdef.json")
        scheduler.wait_for("ACTION=recovery COMPLETED=1")
        assert scheduler.process.poll() is None


@pytest.mark.root
@needs_other_user
def test_as_root_it_becomes_the_service_user(bench: Bench) -> None:
    """It owns nothing as root; what it writes belongs to the service user."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    nobody = pwd.getpwnam("nobody")
    for path in (bench.home / "state", *(bench.home / "state").rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    for path in [bench.home, *bench.home.parents]:
        if path.stat().st_uid == 0 and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    with start(bench, service_user="nobody", service_group="nogroup") as scheduler:
        metrics = eventually((bench.home / "state" / "metrics" / "ctrl-exec-scheduler.json").stat)
        assert metrics.st_uid == nobody.pw_uid
        assert f"Uid:\t{nobody.pw_uid}\t{nobody.pw_uid}" in Path(f"/proc/{scheduler.pid}/status").read_text()
