"""With a log daemon that is there, as in production: what is inherited of its connection."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.fleet import Fleet
from tests.support.polling import eventually

# a journal of its own in a mount namespace of its own: its lines go to the file named first
JOURNAL = """
import os, socket, subprocess, sys, threading
os.makedirs("/run/systemd/journal")
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind("/run/systemd/journal/socket")
def keep():
    with open(sys.argv[1], "ab", buffering=0) as lines:
        while True:
            lines.write(journal.recv(1 << 20))
threading.Thread(target=keep, daemon=True).start()
program = subprocess.Popen(sys.argv[2:])
import signal
signal.signal(signal.SIGTERM, lambda *_: program.terminate())
sys.exit(program.wait())
"""


def can_mount() -> bool:
    """Whether this user may make a mount namespace and put something there."""
    tried = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/run"], capture_output=True, check=False
    )
    return tried.returncode == 0


@pytest.fixture
def logged(own_fleet: Fleet, tmp_path: Path) -> Iterator[tuple[Fleet, Path]]:
    """host-a, and an API that logs to a journal; the file with its lines."""
    own_fleet.write_conf({"log_target": "journal"})
    lines = tmp_path / "journal"
    start = 'mount -t tmpfs none /run && exec "$@"'
    api = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", start, "sh", sys.executable, "-c", JOURNAL, str(lines),
         *processes.command("ctrl-exec-api", "--config", own_fleet.conf)],
        env=processes.environment(), start_new_session=True,
    )  # fmt: skip
    try:
        found = eventually(
            lambda: lines.exists() and lines.read_text().partition("ADDRESS=127.0.0.1:")[2].split(),
            what="the API",
        )
        own_fleet.api_port = int(found[0])
        yield own_fleet, lines
    finally:
        os.killpg(api.pid, signal.SIGKILL)
        api.wait(60)


@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace")
@pytest.mark.parametrize("is_async", [True, False])
def test_a_detached_carrier_carries_its_run_to_the_end(
    logged: tuple[Fleet, Path], gate: Path, is_async: bool
) -> None:
    """It keeps no connection to the log daemon, and needs none to go on."""
    fleet, lines = logged
    body = {"hosts": ["host-a"], "script": "gate", "args": [str(gate)]}
    more = {"async": True} if is_async else {"read_timeout": 1}
    reqid = fleet.http("POST", "/run", body | more).json["reqid"]
    gate.touch()

    def is_complete() -> bool:
        return bool(json.loads((fleet.state / "runs" / f"{reqid}.json").read_text())["complete"])

    eventually(is_complete, what="the detached carrier finishes")
    # the record is complete before the locks are free, and a journal is written by another process
    eventually(lambda: f"ACTION=lock-release REQID={reqid}" in lines.read_text(), what="the end is logged")
    assert "carrier left" not in lines.read_text()
