"""A thousand agents, registered and pinged by one call and by one command."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrl_exec.common.log import Log
from ctrl_exec.config import load_config
from ctrl_exec.dispatcher import Dispatcher, open_dispatcher
from ctrl_exec.operations.discovery import discover
from ctrl_exec.operations.ping import ping
from ctrl_exec.operations.run import RunRequest, run
from ctrl_exec.services.authority import Caller
from tests.support.emulated import Fleet
from tests.support.processes import run as run_program

COUNT = 1000
CALLER = Caller(username="tester", via="cli")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A thousand agents, one of which lies and one of which is not there."""
    made = Fleet(tmp_path_factory.mktemp("thousand"))
    made.add_many(COUNT - 2, tags={"role": "web"})
    made.add("liar", lie="no json")
    made.add("gone", lie="reset")
    with made:
        yield made


@pytest.fixture
def conf(fleet: Fleet, tmp_path: Path) -> Path:
    """The configuration of a dispatcher that has them all in its registry."""
    for name in ("etc", "state"):
        (tmp_path / name).mkdir()
    fleet.register(tmp_path / "state" / "agents")
    path = tmp_path / "etc" / "ctrl-exec.conf"
    path.write_text(
        f"etc_dir = {tmp_path}/etc\nstate_dir = {tmp_path}/state\nlog_target = stderr\n"
        f"cert = {fleet.identity.pem}\nkey = {fleet.identity.pem}\nca = {fleet.ca}\n"
        "discovery_timeout = 60\n"
    )
    return path


@pytest.fixture
def dispatcher(conf: Path) -> Dispatcher:
    """The dispatcher of that configuration, logging to memory."""
    log = Log("test", stream=io.StringIO())
    return open_dispatcher(load_config(str(conf)), log, environment={})


def test_one_call_pings_a_thousand(dispatcher: Dispatcher) -> None:
    """Each has its own result, in the order of the registry; contacts are noted."""
    found = ping(dispatcher, CALLER, ("@all",))
    assert [each.host for each in found] == list(dispatcher.registry.names())
    failed = {each.host: each.error for each in found if not each.is_ok}
    assert set(failed) == {"liar", "gone"}
    assert failed["liar"].startswith("invalid answer")
    contact = dispatcher.registry.contact("host-0001")
    assert contact["version"] == "0.1.0"
    assert contact["at"]
    assert dispatcher.registry.contact("gone") == {}


@pytest.mark.long
def test_one_call_discovers_a_thousand(dispatcher: Dispatcher) -> None:
    """Scripts and tags of all; a tag that the registry has not is logged."""
    found = discover(dispatcher, CALLER)
    assert len(found) == COUNT
    assert found["host-0007"]["scripts"][0]["name"] == "hello"
    assert found["host-0007"]["tags"] == {"role": "web"}
    assert found["liar"]["status"] == "error"


def test_one_call_runs_on_a_thousand(dispatcher: Dispatcher) -> None:
    """One result for each, none missing, counted by state."""
    report = run(dispatcher, CALLER, RunRequest(hosts=("@all",), script="hello"))
    assert len(report.results) == COUNT
    assert report.counts["ok"] == COUNT - 2
    assert report.counts["failed"] == 1


@pytest.mark.long
def test_one_command_pings_a_thousand(conf: Path) -> None:
    """`ctrl-exec ping --all --json` prints a thousand results and exits 1 for the two that failed."""
    done = run_program("ctrl-exec", "--config", conf, "ping", "--all", "--json")
    assert done.returncode == 1, done.stderr[-2000:]
    results = json.loads(done.stdout)["results"]
    assert len(results) == COUNT
    assert sum(each["status"] == "ok" for each in results) == COUNT - 2


def test_the_emulator_is_a_program(tmp_path: Path) -> None:
    """It makes certificates and records, says its port, and answers."""
    import subprocess
    import sys

    from tests.support.processes import environment

    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.emulator", "--count", "5", "--directory", str(tmp_path / "pki"),
         "--registry", str(tmp_path / "agents")],
        stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        about = json.loads(process.stdout.readline())
        assert about["pid"] == process.pid
        assert sorted(os.listdir(tmp_path / "agents")) == [f"host-000{number}.json" for number in range(1, 6)]
        record = json.loads((tmp_path / "agents" / "host-0001.json").read_text())
        assert record["port"] == about["port"]
    finally:
        process.kill()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
