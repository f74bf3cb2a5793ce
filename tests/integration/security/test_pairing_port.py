"""Clients of the pairing port that go away, or stand in others' way, at the wrong moment."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pairing import Instance, ListenerProcess, RawAgent, RawClient, listening
from tests.support.polling import eventually
from tests.support.processes import children_of

SILENT_CLIENTS = 60


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[ListenerProcess]:
    """A listener of a private dispatcher."""
    with listening(Instance(tmp_path)) as started:
        yield started


def test_an_agent_that_goes_away_is_no_crash(listener: ListenerProcess) -> None:
    """Nobody can fill the log with errors that are none of ours."""
    client = RawClient(listener.port)
    (child,) = eventually(lambda: children_of(listener.process.pid), what="a child serves it") or ()
    os.kill(child, signal.SIGSTOP)
    client.post(RawAgent().request())
    client.close()
    os.kill(child, signal.SIGCONT)
    eventually(lambda: not children_of(listener.process.pid), what="the child ends")
    assert "ACTION=crash" not in listener.log()


def test_an_agent_ended_for_others_is_no_crash(listener: ListenerProcess) -> None:
    """The oldest of those that wait for their client makes room; it is told so."""
    client = RawClient(listener.port)
    client.post(RawAgent().request())
    assert client.document()["status"] == "pending"
    silent: list[socket.socket] = []
    try:
        for _ in range(SILENT_CLIENTS):
            each = socket.create_connection(("127.0.0.1", listener.port))
            each.sendall(b"\x16\x03")
            silent.append(each)
        assert client.document()["status"] == "error"
        assert "ACTION=crash" not in listener.log()
    finally:
        for each in (client, *silent):
            each.close()


def test_a_queue_that_cannot_be_written_is_no_crash(listener: ListenerProcess, tmp_path: Path) -> None:
    """The agent is told that the dispatcher cannot take requests now."""
    folder = tmp_path / "state" / "pairing" / "incoming"
    folder.rmdir()
    folder.write_text("")
    with RawClient(listener.port) as client:
        client.post(RawAgent().request())
        assert client.document()["status"] == "error"
    assert "ACTION=crash" not in listener.log()
