"""HTTP requests as executions whose receiver is silent: ended when somebody wants it, and at their time."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from ctrl_exec.common.process import is_group_alive
from ctrl_exec.tasks.execution.executions import find_execution
from tests.integration.tasks.test_executions import ended, log_of, start
from tests.support.office import Office
from tests.support.polling import eventually


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """An office with a scheduler that may reach loopback."""
    made = Office(tmp_path_factory.mktemp("requests"), {"tasks.outgoing_allow": "127.0.0.0/8"})
    try:
        made.start_api()
        made.start_scheduler()
        yield made
    finally:
        made.close()


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes a connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield listener


def request(works: Office, listener: socket.socket, **changes: Any) -> str:
    kind = {"method": "GET", "url": f"http://127.0.0.1:{listener.getsockname()[1]}/slow"}
    task = works.create_task(taskType="HTTP_REQUEST", httpRequestTask=kind, agentScriptTask=None, **changes)
    return str(task["taskId"])


def test_an_abort_ends_it_at_once(works: Office, silent: socket.socket) -> None:
    """Its limit is five minutes; the connection is closed, nothing of it lives."""
    execution_id = start(works, request(works, silent))
    peer, _ = silent.accept()
    with peer:
        peer.settimeout(60)
        assert b"GET /slow" in peer.recv(4096)
        assert works.ask("POST", f"/api/v1/executions/{execution_id}/abort").status == 202
        assert peer.recv(1) == b""
    execution = ended(works, execution_id)
    assert (execution["status"], execution["reason"], execution["exitCode"]) == ("ABORTED", "aborted", None)


def test_at_its_time_limit_it_is_timed_out(works: Office, silent: socket.socket) -> None:
    execution = ended(works, start(works, request(works, silent, timeout=1, timeoutDurationUnit="SECOND")))
    assert (execution["status"], execution["reason"]) == ("TIMED_OUT", "timed out after 1s")
    assert log_of(works, execution["executionId"]) == ""


def test_what_a_dead_carrier_left_is_ended_before_it_is_lost(works: Office, silent: socket.socket) -> None:
    """The process that sends is noted like a command's."""
    execution_id = start(works, request(works, silent))
    peer, _ = silent.accept()
    with peer, works.store() as store:
        group = find_execution(store, execution_id).group_pid
        assert group is not None
        with open(f"/proc/{group}/stat", "rb") as about:
            carrier = int(about.read().rpartition(b")")[2].split()[1])
        os.kill(carrier, signal.SIGKILL)
        assert works.scheduler is not None
        works.scheduler.stop()
        works.start_scheduler()  # recovery is the first thing it does
        assert ended(works, execution_id)["status"] == "LOST"
        assert eventually(lambda: not is_group_alive(group))
        peer.settimeout(60)
        while peer.recv(4096):
            pass
