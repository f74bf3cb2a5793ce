"""Log lines: fields in order, values that cannot forge, every target."""

from __future__ import annotations

import io
import json
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common import log as log_module
from ctrl_exec.common.log import Log, format_fields


def test_action_comes_first_and_the_rest_is_sorted() -> None:
    line = format_fields("run", {"reqid": "ab12", "exit": 0, "peer": "10.0.0.1:4", "user": None})
    assert line == "ACTION=run EXIT=0 PEER=10.0.0.1:4 REQID=ab12"


@pytest.mark.parametrize(
    ("given_value", "shown"),
    [
        ("a b", '"a b"'), ('say "x"', r'"say \"x\""'), ("back\\", r'"back\\"'), ("two\nlines", r'"two\nlines"'),
        ("\x1b[31m", r'"\x1b[31m"'), ("", '""'), ("é", '"é"'), ("\u202e", r'"\xe2\x80\xae"'), ("\udcff", r'"\xff"'),
        (True, "yes"), (("a", "b"), "a,b"), ("x" * 2000, "x" * 1021 + "..."),
    ],
)  # fmt: skip
def test_values_are_quoted_and_escaped(given_value: object, shown: str) -> None:
    assert format_fields("a", {"v": given_value}) == f"ACTION=a V={shown}"


@given(st.dictionaries(st.sampled_from(["exit", "user", "script"]), st.text(max_size=100)))
def test_no_value_forges_a_field_or_a_line(found: dict[str, str]) -> None:
    line = format_fields("run", dict(found))
    assert "\n" not in line
    assert "\r" not in line
    without_quoted = re.sub(r'"(?:[^"\\]|\\.)*"', '""', line)
    assert re.findall(r"(?:^| )([A-Z]+)=", without_quoted) == [
        "ACTION",
        *sorted(key.upper() for key in found),
    ]


def test_the_stream_gets_time_and_level() -> None:
    stream = io.StringIO()
    log = Log("agent", stream=stream)
    log.info("start", port=1)
    log.warning("deny")
    log.error("overload")
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO ACTION=start PORT=1", lines[0])
    assert [line.split()[1] for line in lines] == ["INFO", "WARNING", "ERR"]


def test_json_has_the_same_fields() -> None:
    stream = io.StringIO()
    Log("agent", style="json", stream=stream).error("run", exit=-1, error='a "b"\n', token=None)
    found = json.loads(stream.getvalue())
    assert found.pop("TIME") > 0
    assert found == {"ACTION": "run", "LEVEL": "ERR", "EXIT": -1, "ERROR": 'a "b"\n'}


@pytest.mark.parametrize(("target", "place"), [("syslog", "SYSLOG_SOCKET"), ("journal", "JOURNAL_SOCKET")])
def test_datagrams_survive_a_restart_of_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, place: str
) -> None:
    address = str(tmp_path / "log")
    monkeypatch.setattr(log_module, place, address)
    log = Log("prog", target)
    for round_trip in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
            daemon.bind(address)
            daemon.settimeout(60)
            log.warning("deny", round=round_trip)
            received = daemon.recv(4096).decode()
        Path(address).unlink()
        assert f"ACTION=deny ROUND={round_trip}" in received
        assert received.startswith("<28>prog[" if target == "syslog" else "PRIORITY=4\n")
    log.close()


def test_without_a_daemon_the_line_goes_to_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "SYSLOG_SOCKET", str(tmp_path / "none"))
    stream = io.StringIO()
    Log("prog", "syslog", stream=stream).info("start")
    assert "ACTION=start" in stream.getvalue()


def test_logging_never_fails_its_caller() -> None:
    stream = io.StringIO()
    stream.close()
    Log("prog", stream=stream).info("start")
