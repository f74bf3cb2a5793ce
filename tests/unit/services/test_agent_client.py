"""What is asked of agents, and what their answers are taken for, whatever they hold."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrl_exec.common.certificate import Certificate
from ctrl_exec.common.messages import STATES, RunCommand
from ctrl_exec.services import agent_answers
from ctrl_exec.services.agent_client import AgentClient, ClientSettings
from ctrl_exec.services.registry import AgentRecord
from ctrl_exec.services.targets import Target
from ctrl_exec.services.transport import Answer, Call, Failure, Interrupt

KEY = "a" * 64
CERTIFICATE = Certificate(
    version=3, serial="ab", not_before=datetime(2026, 1, 1, tzinfo=UTC),
    not_after=datetime(2027, 1, 5, 12, 0, 0, tzinfo=UTC), fingerprint=KEY, common_name="web-01",
    uris=(), dns_names=(), extended_usages=None,
)  # fmt: skip
REQID = "0123456789abcdef"


@dataclass
class Wire:
    """A transport that answers from a table: by path, or one failure for all."""

    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    failure: Failure | None = None
    certificate: Certificate | None = CERTIFICATE
    calls: list[Call] = field(default_factory=list)

    def send(self, calls: Sequence[Call], interrupt: Interrupt | None = None) -> Iterator[Answer]:
        for call in calls:
            self.calls.append(call)
            if self.failure is not None:
                yield Answer(call.key, rtt_s=0.0124, failure=self.failure)
                continue
            path = call.request.split(b" ", 2)[1].decode()
            status, body = self.answers[path]
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            yield Answer(call.key, status, raw, rtt_s=0.0124, certificate=self.certificate)


def target(name: str = "web-01", **fields: Any) -> Target:
    record = AgentRecord(
        **({"hostname": name, "ip": "192.0.2.1", "lookup_by": "ip", "fingerprint": KEY} | fields)
    )
    return Target(name, record.port, record)


def client(wire: Wire, **options: Any) -> AgentClient:
    return AgentClient(wire, ClientSettings(), **options)


def run(wire: Wire, **fields: Any) -> Any:
    command = RunCommand(**({"script": "deploy", "reqid": REQID} | fields))
    return next(client(wire).run([target()], command))


def answered(document: Any, status: int = 200, **fields: Any) -> Any:
    return run(Wire({"/run": (status, document), "/ping": (200, ping_document())}), **fields)


def ping_document(**fields: Any) -> dict[str, Any]:
    plain = {"status": "ok", "host": "web-01", "version": "0.12", "expiry": "Jan 15 12:00:00 2027 GMT"}
    return plain | {"features": ["base64", "result"]} | fields


def polled(status: int, document: Any, **options: Any) -> Any:
    wire = Wire({f"/result/{REQID}": (status, document)})
    return next(client(wire).result([target()], REQID, "deploy", **options))


# Requests


def test_the_run_request_is_what_the_wire_asks_for() -> None:
    wire = Wire({"/run": (200, {"exit": 0})})
    list(
        client(wire).run(
            [target(), target("web-02", lookup_by="hostname", port=7000)],
            RunCommand(script="deploy", args=("-x", "a b"), reqid=REQID, username="u", token="t", timeout=5),
            read_timeout_s=7,
        )
    )
    first, second = wire.calls
    head, _, body = first.request.partition(b"\r\n\r\n")
    assert json.loads(body) == {
        "script": "deploy", "args": ["-x", "a b"], "reqid": REQID, "username": "u", "token": "t", "timeout": 5,
    }  # fmt: skip
    assert head.startswith(b"POST /run HTTP/1.1\r\nHost: ")
    assert f"\r\nContent-Length: {len(body)}".encode() in head
    assert (first.host, first.port, first.fingerprint, first.read_timeout_s) == ("192.0.2.1", 7443, KEY, 7)
    assert (second.host, second.port) == ("web-02", 7000)
    assert first.deadline is not None
    assert first.request is second.request  # half a megabyte of arguments is not copied for each host


def test_a_get_has_no_body() -> None:
    wire = Wire({"/capabilities": (200, ping_document(scripts=[], tags={}))})
    list(client(wire).capabilities([target()], timeout_s=5))
    assert wire.calls[0].request.startswith(b"GET /capabilities HTTP/1.1\r\n")
    assert wire.calls[0].request.endswith(b"\r\n\r\n")
    assert b"Content-Length" not in wire.calls[0].request
    assert wire.calls[0].deadline is not None


def test_revoked_keys_are_not_contacted() -> None:
    wire = Wire({"/ping": (200, ping_document())})
    found = list(client(wire, revoked=lambda: frozenset([KEY])).ping([target()], REQID))
    assert [(each.state, each.error) for each in found] == [("refused", "certificate revoked")]
    assert wire.calls == []


def test_a_key_that_is_not_recorded_is_learnt_from_an_answer() -> None:
    learnt = []
    wire = Wire({"/ping": (200, ping_document())})
    speaking = client(
        wire, registered=lambda: frozenset(["b" * 64]), learn=lambda name, shown: learnt.append((name, shown))
    )
    list(speaking.ping([target(fingerprint=""), target("web-02", fingerprint=KEY)], REQID))
    assert learnt == [("web-01", CERTIFICATE)]
    assert wire.calls[0].fingerprint is None
    assert wire.calls[0].foreign == {"b" * 64}
    assert wire.calls[1].foreign == frozenset()


def test_a_failure_teaches_nothing() -> None:
    learnt: list[object] = []
    wire = Wire(failure=Failure("refused", "certificate of another agent"))
    list(client(wire, learn=lambda *each: learnt.append(each)).ping([target(fingerprint="")], REQID))
    assert learnt == []


# Runs


def test_a_run_that_succeeds() -> None:
    result = answered({"script": "deploy", "exit": 0, "stdout": "fine\n", "stderr": "", "reqid": REQID})
    assert result.as_json() == {
        "host": "web-01", "script": "deploy", "exit": 0, "stdout": "fine\n", "stderr": "", "rtt": "12ms",
        "reqid": REQID, "state": "ok",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("document", "state", "code", "error"),
    [
        ({"exit": 3, "stdout": "", "stderr": "no"}, "failed", 3, ""),
        ({"exit": "3"}, "failed", 3, ""),  # older peers write numbers as strings, too
        ({"exit": 126, "error": "killed by signal 9"}, "failed", 126, "killed by signal 9"),
        ({"exit": 126, "error": "timeout", "timed_out": True}, "timeout", 126, "timeout"),
        ({"exit": -1, "error": "script not permitted"}, "refused", -1, "script not permitted"),
        ({"exit": -1, "error": "not authorised: denied"}, "refused", -1, "not authorised: denied"),
        ({"exit": -1, "error": "script already running"}, "busy", -1, "script already running"),
        # our order had arrived before: the agent is asked what became of it
        ({"exit": -1, "error": "a run with this reqid: x"}, "running", -1, "a run with this reqid: x"),
        ({"exit": -1, "error": "disk full"}, "failed", -1, "disk full"),
        ({"stdout": "no exit"}, "failed", -1, "invalid answer: exit: expected a whole number from -1 to 255"),
        ({"exit": True}, "failed", -1, "invalid answer: exit: expected a whole number from -1 to 255"),
        ({"exit": "300"}, "failed", -1, "invalid answer: exit: expected a whole number from -1 to 255"),
        ({"exit": 10**30}, "failed", -1, "invalid answer: exit: expected a whole number from -1 to 255"),
        ({"exit": 0, "stdout": 5}, "failed", -1, "invalid answer: stdout: expected a string"),
        (
            {"exit": 0, "truncated": {"stdout": "x"}},
            "failed",
            -1,
            "invalid answer: stdout: expected a whole number",
        ),
    ],
)
def test_what_an_agent_says_of_a_run(document: Any, state: str, code: int, error: str) -> None:
    result = answered(document)
    assert (result.state, result.exit, result.error) == (state, code, error)


@pytest.mark.parametrize(
    ("status", "body", "state", "error"),
    [
        (403, {"error": "serial mismatch", "status": "forbidden"}, "refused", "serial mismatch"),
        (403, {}, "refused", "forbidden"),
        (409, {"status": "busy", "error": "script already running"}, "busy", "script already running"),
        (500, {"error": "server error", "detail": "x"}, "failed", "the agent answered 500: server error"),
        (503, b"<html>", "failed", "the agent answered 503"),
        (200, b"[1]", "failed", "invalid answer: expected a JSON object"),
        (200, b'{"exit": 0, "exit": 1}', "failed", "invalid answer: not JSON (key 'exit' is given twice)"),
        (200, b'{"exit": NaN}', "failed", "invalid answer: not JSON (NaN is no JSON number)"),
        (200, b"", "failed", "invalid answer: not JSON (Expecting value: line 1 column 1 (char 0))"),
    ],
)
def test_other_statuses_and_bodies(status: int, body: Any, state: str, error: str) -> None:
    result = answered(body, status)
    assert (result.state, result.exit, result.error) == (state, -1, error)


def test_an_accepted_run_has_no_exit_yet() -> None:
    result = answered({"status": "accepted"}, 202, is_async=True)
    assert (result.state, result.exit, result.error) == ("accepted", None, "")


@pytest.mark.parametrize(
    ("failure", "state", "error"),
    [
        (Failure("unreachable", "connection refused"), "unreachable", "connection refused"),
        (Failure("refused", "certificate of another agent"), "refused", "certificate of another agent"),
        (Failure("timeout", "read timeout after 60s", sent=True), "running", "read timeout after 60s"),
        (Failure("timeout", "its time was over"), "unreachable", "its time was over"),
        (Failure("lost", "connection closed", sent=True), "lost", "connection closed"),
        (Failure("lost", "connection closed"), "unreachable", "connection closed"),
        (Failure("too large", "the body", sent=True), "failed", "answer too large"),
        (Failure("protocol", "the answer is no HTTP", sent=True), "failed", "the answer is no HTTP"),
    ],
)
def test_no_answer_is_a_result_too(failure: Failure, state: str, error: str) -> None:
    result = run(Wire(failure=failure))
    assert (result.state, result.exit, result.error, result.rtt_ms) == (state, -1, error, 12)


def test_what_the_agent_dropped_is_told() -> None:
    result = answered({"exit": 0, "stdout": "x", "truncated": {"stdout": 7, "stderr": 0}})
    assert result.as_json()["truncated"] == {"stdout": 7, "stderr": 0}


def test_half_characters_and_control_codes_are_made_harmless() -> None:
    result = answered(b'{"exit": 1, "stdout": "a\\ud800b", "error": "red \\u001b[31m\\n"}')
    assert result.stdout == "a?b"
    assert result.error == "red ?[31m?"


# Exact bytes


def test_base64_is_asked_for_where_the_agent_has_it() -> None:
    encoded = base64.b64encode(b"\xff\x00").decode()
    result = answered({"exit": 0, "stdout": encoded, "stderr": "", "encoding": "base64"}, encoding="base64")
    assert (result.state, result.stdout) == ("ok", encoded)


def test_an_agent_without_base64_is_not_run() -> None:
    wire = Wire({"/ping": (200, ping_document(features=[]))})
    result = run(wire, encoding="base64")
    assert (result.state, result.exit, result.error) == ("failed", -1, "agent too old for base64")
    assert len(wire.calls) == 1


def test_an_agent_that_cannot_be_asked_for_it_is_unreachable() -> None:
    result = run(Wire(failure=Failure("timeout", "read timeout after 60s", sent=True)), encoding="base64")
    assert (result.state, result.error) == ("unreachable", "read timeout after 60s")


def test_output_comes_in_the_encoding_wanted_whatever_it_was_sent_in() -> None:
    encoded = base64.b64encode(b"caf\xc3\xa9 \xff").decode()
    assert answered({"exit": 0, "stdout": encoded, "encoding": "base64"}).stdout == "café \ufffd"
    result = answered({"exit": 0, "stdout": "café"}, encoding="base64")
    assert base64.b64decode(result.stdout) == "café".encode()


def test_bad_base64_is_an_invalid_answer() -> None:
    result = answered({"exit": 0, "stdout": "!!", "encoding": "base64"}, encoding="base64")
    assert (result.state, result.error) == ("failed", "invalid answer: stdout or stderr: not base64")


# Polling


@pytest.mark.parametrize(
    ("status", "document", "state", "code", "error"),
    [
        (200, {"status": "running"}, "running", None, ""),
        (200, {"status": "done", "exit": 0, "stdout": "x"}, "ok", 0, ""),
        (200, {"status": "done", "exit": 2}, "failed", 2, ""),
        (200, {"status": "done", "exit": 126, "timed_out": True, "error": "t"}, "timeout", 126, "t"),
        (200, {"status": "lost"}, "lost", -1, "the agent restarted during the run"),
        (404, {"status": "unknown", "reqid": REQID}, "pending", None, ""),
        (404, {"error": "not found"}, "pending", None, agent_answers.NO_RESULTS),
        (200, {"status": "odd"}, "running", -1, "the agent answered 200"),
        (500, {"error": "x"}, "running", -1, "the agent answered 500: x"),
        (403, {"error": "serial mismatch"}, "running", -1, "serial mismatch"),
        (200, b"no", "running", -1, "invalid answer: not JSON (Expecting value: line 1 column 1 (char 0))"),
    ],
)
def test_what_a_poll_says(status: int, document: Any, state: str, code: int | None, error: str) -> None:
    result = polled(status, document)
    assert (result.state, result.exit, result.error) == (state, code, error)


def test_a_poll_that_fails_settles_nothing() -> None:
    wire = Wire(failure=Failure("unreachable", "no route to host"))
    result = next(client(wire).result([target()], REQID, "deploy", within_s=2))
    assert (result.state, result.error) == ("running", "no route to host")
    assert wire.calls[0].deadline is not None


# Ping and capabilities


def test_a_ping_shows_what_the_handshake_proved() -> None:
    found = next(client(Wire({"/ping": (200, ping_document())})).ping([target()], REQID))
    assert found.as_json() == {
        "host": "web-01", "status": "ok", "rtt": "12ms", "expiry": "Jan  5 12:00:00 2027 GMT", "version": "0.12",
    }  # fmt: skip
    assert found.features == ("base64", "result")


def test_a_ping_without_a_certificate_shows_what_the_agent_says() -> None:
    wire = Wire({"/ping": (200, ping_document())}, certificate=None)
    assert next(client(wire).ping([target()], REQID)).expiry == "Jan 15 12:00:00 2027 GMT"
    wire = Wire({"/ping": (200, ping_document(expiry="\x1b[2Jsoon"))}, certificate=None)
    assert next(client(wire).ping([target()], REQID)).expiry == ""


@pytest.mark.parametrize(
    ("status", "document", "error"),
    [
        (200, {"status": "error"}, "the agent answered 200"),
        (404, {"error": "not found"}, "the agent answered 404: not found"),
        (200, {}, "the agent answered 200"),
    ],
)
def test_a_ping_that_is_not_ok(status: int, document: Any, error: str) -> None:
    found = next(client(Wire({"/ping": (status, document)})).ping([target()], REQID))
    assert found.as_json() == {
        "host": "web-01",
        "status": "error",
        "rtt": "12ms",
        "error": error,
        "state": "failed",
    }


def test_odd_features_are_none() -> None:
    wire = Wire({"/ping": (200, ping_document(features={"base64": 1}))})
    assert next(client(wire).ping([target()], REQID)).features == ()


def test_capabilities_keep_what_makes_sense() -> None:
    document = ping_document(
        tags={"role": "db", "odd": 7},
        scripts=[
            {
                "name": "deploy",
                "path": "/opt/x",
                "executable": 1,
                "schema": {"version": "2"},
                "schema_version": "2",
            },
            {"name": "../evil", "path": "/x", "executable": True},
            {"path": "/x"},
            "deploy",
            {"name": "plain", "profile": "root", "schema": "no"},
        ],
    )
    found = next(client(Wire({"/capabilities": (200, document)})).capabilities([target()], timeout_s=5))
    assert found.as_json() == {
        "host": "web-01", "status": "ok", "version": "0.12", "tags": {"role": "db"},
        "scripts": [
            {"name": "deploy", "path": "/opt/x", "executable": True, "schema": {"version": "2"}, "schema_version": "2"},
            {"name": "plain", "path": "", "executable": False, "profile": "root"},
        ],
    }  # fmt: skip


@pytest.mark.parametrize("oddity", [{"tags": [], "scripts": {}}, {"tags": None}, {"scripts": "deploy"}])
def test_odd_capabilities_are_empty(oddity: Any) -> None:
    wire = Wire({"/capabilities": (200, ping_document(**oddity))})
    found = next(client(wire).capabilities([target()], timeout_s=5))
    assert (found.state, found.tags, found.scripts) == ("ok", (), ())


def test_capabilities_in_time_or_not_at_all() -> None:
    wire = Wire(failure=Failure("timeout", "no answer within 5s", sent=True))
    found = next(client(wire).capabilities([target()], timeout_s=5))
    assert found.as_json() == {
        "host": "web-01", "status": "error", "error": "no answer within 5s", "state": "timeout",
    }  # fmt: skip


# Whatever comes


def test_a_large_body_that_is_no_output_is_refused_before_it_is_parsed() -> None:
    for body in (
        b'{"exit": 0, "a": [' + b"{}," * 500_000 + b"{}]}",
        b"[" * (2 << 20),
        b'{"a": "' + b"x" * (2 << 20),
    ):
        result = answered(body)
        assert result.state == "failed"
        assert result.error.startswith("invalid answer: ")


def test_a_large_output_is_taken() -> None:
    output = '"\\\u20ac\x00' * 600_000
    assert answered({"exit": 0, "stdout": output, "stderr": "x" * (1 << 20)}).stdout == output


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["exit", "stdout", "stderr", "error", "status", "encoding", "truncated", "timed_out", "version", "tags",
     "scripts", "features", "expiry", "staged", "reqid"]
)  # fmt: skip
DOCUMENTS = st.dictionaries(KEYS, JSON, max_size=8).map(lambda each: json.dumps(each).encode())


@given(
    status=st.sampled_from([200, 202, 204, 301, 400, 403, 404, 409, 500, 503]),
    body=st.binary(max_size=64) | DOCUMENTS,
    encoding=st.sampled_from([None, "utf-8", "base64"]),
)
def test_nothing_an_agent_sends_is_an_exception(status: int, body: bytes, encoding: str | None) -> None:
    reply = agent_answers.read_reply("web-01", Answer("web-01", status, body))
    for result in (
        agent_answers.run_result(reply, "deploy", REQID, encoding),
        agent_answers.polled_result(reply, "deploy", REQID, encoding),
    ):
        assert result.state in STATES
        json.dumps(result.as_json()).encode()
        result.stdout.encode()
    json.dumps(agent_answers.ping_result(reply).as_json()).encode()
    json.dumps(agent_answers.capabilities_report(reply).as_json()).encode()
