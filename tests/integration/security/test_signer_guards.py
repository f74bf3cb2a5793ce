"""The signer against a pairing queue that a listener in wrong hands has written."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.pairing import Instance, RawAgent

REQID = "00000000000000aa"


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    """A private dispatcher with an empty queue."""
    made = Instance(tmp_path)
    made.signer().queue.prepare()
    return made


def queued(instance: Instance, agent: RawAgent, request_id: str = REQID, **changes: Any) -> Path:
    """A request laid down by hand."""
    document = {
        "id": request_id, "hostname": agent.name, "csr": agent.csr, "nonce": "0" * 32, "remote_ip": "127.0.0.1",
        "ip": "127.0.0.1", "port": 7443, "lookup_by": "ip", "protocol": 2, "received": int(time.time()),
        "agent_random": "ab" * 32, "server_random": "cd" * 32,
    }  # fmt: skip
    path = Path(instance.config.pairing_dir) / "requests" / f"{request_id}.json"
    path.write_text(json.dumps(document | changes))
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"received": 10**400}, {"received": 10**12}, {"received": -(10**400)}, {"received": 1e400},
        {"port": 10**400}, {"protocol": 10**400}, {"ip": "x\u001b[2J"}, {"remote_ip": "\ud800"},
        {"lookup_by": "\u001b]0;x\u0007"}, {"csr": "\ud800"}, {"ip": "1" * 60000}, {"hostname": "WEB"},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_a_strange_request_hides_no_other(instance: Instance, changes: dict[str, Any]) -> None:
    """What cannot be right is left out; the rest is shown and can be approved."""
    queued(instance, RawAgent("evil"), "00000000000000bb", **changes)
    queued(instance, RawAgent("web-01"))
    found = instance.json("list-requests")["requests"]
    assert REQID in [each["id"] for each in found]
    done = instance.run("list-requests")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "internal error" not in done.stderr
    assert instance.run("approve", REQID).returncode == 0


def test_a_heartbeat_of_the_future_stops_no_signer(instance: Instance) -> None:
    """Work that needs no person goes on whatever the queue says of the last time it was done."""
    heartbeat = Path(instance.config.pairing_dir) / "heartbeat.json"
    heartbeat.write_text(json.dumps({"at": 10**11, "pid": 1}))
    instance.signer().turn()
    assert json.loads(heartbeat.read_text())["at"] < 10**11


def test_a_swapped_request_is_refused(instance: Instance) -> None:
    """The first copy is what is shown and what counts."""
    queued(instance, RawAgent("web-01"))
    instance.json("list-requests")
    queued(instance, RawAgent("web-01"))
    done = instance.run("approve", REQID)
    assert done.returncode == 1
    assert "changed after it was shown" in done.stderr
    assert not list(Path(instance.config.agents_dir).glob("*.json"))


@pytest.mark.parametrize("folder", ["requests", "answers", "claimed"])
def test_links_in_the_queue_are_not_followed(instance: Instance, tmp_path: Path, folder: str) -> None:
    """Neither a folder nor a file that is a link leads the signer out of the queue."""
    outside = tmp_path / "outside"
    outside.mkdir()
    target = queued(instance, RawAgent("web-01"))
    place = Path(instance.config.pairing_dir) / folder
    if folder == "requests":
        moved = outside / "request.json"
        target.rename(moved)
        target.symlink_to(moved)
    else:
        place.rmdir()
        place.symlink_to(outside)
    assert instance.run("approve", REQID).returncode == 1
    assert [each.name for each in outside.iterdir()] in ([], ["request.json"])
    assert stat.S_ISLNK(os.lstat(target if folder == "requests" else place).st_mode)
