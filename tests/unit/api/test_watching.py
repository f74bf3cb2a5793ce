"""The two forms of an event in a stream."""

from __future__ import annotations

import json

import pytest

from ctrl_exec.api.watching import encode_line, encode_sse
from ctrl_exec.common.messages import HostResult
from ctrl_exec.operations.follow import RunEvent

EXIT = HostResult("web-01", "deploy", "failed", exit=3, stdout="", stderr="", rtt_ms=12, reqid="a" * 16)


def test_an_event_as_browsers_read_it() -> None:
    found = encode_sse(RunEvent(7, "stdout", "web-01", "a\nb\n"))
    assert found == b'id: 7\nevent: stdout\ndata: {"host":"web-01","text":"a\\nb\\n"}\n\n'


def test_an_event_as_a_line() -> None:
    line = encode_line(RunEvent(9, "exit", "web-01", result=EXIT))
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "id": 9, "event": "exit", "host": "web-01", "script": "deploy", "exit": 3, "rtt": "12ms", "reqid": "a" * 16,
        "state": "failed",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["\n\n", "\r\n", "id: 1\n\ndata: x\n\n", "\u2028\u2029\x85", "\ud800", "\x00", ""]
)
def test_no_output_can_forge_an_event(text: str) -> None:
    """Whatever a script prints stays within its one line of data."""
    event = RunEvent(1, "stderr", "web-01", text)
    for found, count in ((encode_sse(event), 4), (encode_line(event), 1)):
        assert len(found.splitlines()) == count
        assert found.isascii()
    assert json.loads(encode_line(event))["text"] == text
    assert json.loads(encode_sse(event).partition(b"data: ")[2])["text"] == text


def test_silence() -> None:
    """For browsers a comment, which has no id and is no event; in lines an event of its own."""
    event = RunEvent(5, "idle")
    assert encode_sse(event) == b": still here\n\n"
    assert json.loads(encode_line(event)) == {"id": 5, "event": "idle"}
