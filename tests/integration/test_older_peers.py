"""Older peers on the wire, both ways: HTTP/1.0 answers, LWP's requests, RSA-4096, X.509 v1, no `features`."""

from __future__ import annotations

import contextlib
import io
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctrl_exec.common.log import Log
from ctrl_exec.config import load_config
from ctrl_exec.dispatcher import Dispatcher, open_dispatcher
from ctrl_exec.operations.discovery import discover
from ctrl_exec.operations.ping import ping
from ctrl_exec.operations.run import RunRequest, run
from ctrl_exec.services.agent_answers import NO_RESULTS
from ctrl_exec.services.authority import Caller
from ctrl_exec.services.targets import resolve_targets
from tests.support.agents import AgentHost, started
from tests.support.emulated import Fleet
from tests.support.pki import Leaf

CALLER = Caller(username="tester", via="cli")
RSA_BITS = 4096
REQID = "0123456789abcdef"

# What agents of the older system put on the wire, as recorded
RUN_ANSWER = (
    "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: 83\r\n\r\n"
    '{"exit":0,"reqid":"0123456789abcdef","script":"hello","stderr":"","stdout":"hi\\n"}\n'
)
RUN_ANSWER_WITHOUT_LENGTH = (
    "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"
    '{"script":"hello","exit":"0","stdout":"hi\\n","stderr":"","reqid":"0123456789abcdef"}'
)
PING_ANSWER = (
    "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: 118\r\n\r\n"
    '{"status":"ok","host":"old","version":"0.8","expiry":"Jan 15 12:00:00 2036 GMT","reqid":"0123456789abcdef","staged":0}'
)
CAPABILITIES_ANSWER = (
    "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"
    '{"status":"ok","host":"old","version":"0.8","tags":{},'
    '"scripts":[{"name":"hello","path":"/opt/hello.sh","executable":1}]}'
)
FORBIDDEN_ANSWER = (
    "HTTP/1.0 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: 49\r\n\r\n"
    '{"error":"serial mismatch","status":"forbidden"}\n'
)


class OldDeployment:
    """An RSA-4096 CA with v1 leaves and small serials, its dispatcher, and older agents."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.fleet = Fleet(home, rsa_bits=RSA_BITS)
        authority = self.fleet.authority
        self.dispatcher_leaf = authority.issue_v1("dispatcher", serial=3, rsa_bits=RSA_BITS)
        # one key for all agents: making such a key takes a second, and they are told apart by name here
        self.agent_leaf = authority.issue_v1("old", serial=4, rsa_bits=RSA_BITS)
        for name, behaviour in {
            "old": {"older": True, "version": "0.8"},
            "old-slow": {"older": True, "delay_s": 600},
            "recorded-run": {"recorded": RUN_ANSWER},
            "recorded-run-2": {"recorded": RUN_ANSWER_WITHOUT_LENGTH},
            "recorded-ping": {"recorded": PING_ANSWER},
            "recorded-capabilities": {"recorded": CAPABILITIES_ANSWER},
            "recorded-forbidden": {"recorded": FORBIDDEN_ANSWER},
        }.items():
            self.fleet.add(name, leaf=self.agent_leaf, **behaviour)  # type: ignore[arg-type]

    def open(self, home: Path, *, imported: str = "") -> Dispatcher:
        """A dispatcher of ours with the old deployment's files; `imported` has no recorded fingerprint."""
        for name in ("etc", "state"):
            (home / name).mkdir()
        agents = home / "state" / "agents"
        self.fleet.register(agents)
        if imported:
            path = agents / f"{imported}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": ""}))
        conf = home / "etc" / "ctrl-exec.conf"
        conf.write_text(
            f"etc_dir = {home}/etc\nstate_dir = {home}/state\nlog_target = stderr\nread_timeout = 2\n"
            f"cert = {self.dispatcher_leaf.crt}\nkey = {self.dispatcher_leaf.key_path}\nca = {self.fleet.ca}\n"
        )
        return open_dispatcher(load_config(str(conf)), Log("test", stream=io.StringIO()), environment={})


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OldDeployment]:
    """One old deployment for all tests."""
    made = OldDeployment(tmp_path_factory.mktemp("old"))
    with made.fleet:
        yield made


@pytest.fixture
def dispatcher(old: OldDeployment, tmp_path: Path) -> Dispatcher:
    """Our dispatcher in its place."""
    return old.open(tmp_path)


# Our dispatcher, their agents


def test_ping_reaches_an_older_agent(dispatcher: Dispatcher) -> None:
    """Version and expiry are shown; it has no features."""
    (found,) = ping(dispatcher, CALLER, ("old",))
    assert found.is_ok, found.error
    assert (found.version, found.features) == ("0.8", ())
    assert found.certificate is not None
    assert (found.certificate.version, found.certificate.serial) == (1, "4")


def test_run_and_discovery_reach_an_older_agent(old: OldDeployment, dispatcher: Dispatcher) -> None:
    """The request holds the plain keys only, as older agents know them."""
    report = run(dispatcher, CALLER, RunRequest(hosts=("old",), script="hello", args=("a",)))
    (result,) = report.results
    assert (result.state, result.exit, result.stdout) == ("ok", 0, "ok\n")
    (sent,) = [each for each in old.fleet.requests("old") if each["path"] == "/run"]
    assert sent["body"] == {
        "script": "hello", "args": ["a"], "reqid": report.reqid, "username": "tester", "token": "",
        "stream": True,
    }  # fmt: skip
    found = discover(dispatcher, CALLER, ("old",))
    assert found["old"]["scripts"] == [
        {"name": "hello", "path": "/opt/ctrl-exec-scripts/hello", "executable": True}
    ]


def test_exact_bytes_are_not_to_be_had_from_an_older_agent(dispatcher: Dispatcher) -> None:
    """That host says so, and nothing is run."""
    (result,) = run(dispatcher, CALLER, RunRequest(hosts=("old",), script="hello", encoding="base64")).results
    assert (result.exit, result.error) == (-1, "agent too old for base64")


def test_an_older_agent_keeps_no_records_of_runs(dispatcher: Dispatcher) -> None:
    """After a read timeout nothing can be learnt of the run; asking says why."""
    report = run(dispatcher, CALLER, RunRequest(hosts=("old-slow",), script="hello"))
    assert [(each.state, each.error) for each in report.results] == [("running", "read timeout after 2s")]
    targets = resolve_targets(("old-slow",), dispatcher.registry, 1).require()
    (found,) = dispatcher.agents.result(targets, report.reqid, "hello")
    assert (found.state, found.error) == ("pending", NO_RESULTS)


def test_an_imported_record_learns_its_key(old: OldDeployment, tmp_path: Path) -> None:
    """The first contact binds the name to the key; from then on no other key answers for it."""
    dispatcher = old.open(tmp_path, imported="old")
    for name in dispatcher.registry.names():
        if name != "old":
            dispatcher.registry.remove(name)  # they share a key here, which would be another agent's
    assert ping(dispatcher, CALLER, ("old",))[0].is_ok
    record = dispatcher.registry.get("old")
    assert record.fingerprint == old.agent_leaf.fingerprint
    assert record.serial == "4"


def test_a_key_that_is_registered_cannot_answer_for_an_imported_record(
    old: OldDeployment, tmp_path: Path
) -> None:
    """Else an agent could take the name of one that was never contacted."""
    dispatcher = old.open(tmp_path, imported="old")
    (found,) = ping(dispatcher, CALLER, ("old",))
    assert (found.state, found.error) == ("refused", "certificate of another agent")
    assert dispatcher.registry.get("old").fingerprint == ""


@pytest.mark.parametrize("name", ["recorded-run", "recorded-run-2"])
def test_recorded_answers_to_a_run(dispatcher: Dispatcher, name: str) -> None:
    """With and without a length, with numbers as numbers and as strings."""
    (result,) = run(dispatcher, CALLER, RunRequest(hosts=(name,), script="hello")).results
    assert (result.state, result.exit, result.stdout, result.error) == ("ok", 0, "hi\n", "")


def test_recorded_answers_to_ping_and_discovery(dispatcher: Dispatcher) -> None:
    """What older agents say is understood; a refusal is one."""
    found, refused = ping(dispatcher, CALLER, ("recorded-ping", "recorded-forbidden"))
    assert (found.is_ok, found.version) == (True, "0.8")
    assert (refused.state, refused.error) == ("refused", "serial mismatch")
    discovered = discover(dispatcher, CALLER, ("recorded-capabilities",))["recorded-capabilities"]
    assert discovered["scripts"] == [{"name": "hello", "path": "/opt/hello.sh", "executable": True}]


# Their dispatcher, our agent


@pytest.fixture(scope="module")
def agent(old: OldDeployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentHost]:
    """An agent of ours in the old deployment: RSA-4096 key and CA, the dispatcher known by serial 3."""
    host = AgentHost(tmp_path_factory.mktemp("agent"), old.fleet.authority, name="host-a", rsa_bits=RSA_BITS)
    host.trust("03", "old-dispatcher")
    host.script("hello", 'echo "hello $*"; cat >/dev/null')
    host.script("fails", "echo wrong >&2; exit 3")
    with started(host):
        yield host


def lwp(
    host: AgentHost, leaf: Leaf, method: str, path: str, body: dict[str, Any] | None = None
) -> tuple[bytes, Any]:
    """One request exactly as LWP::UserAgent writes it; the head of the answer and its JSON.

    The answer is read to the end of the connection, as `Connection: close` asks for, and a missing
    close_notify would be an error.
    """
    payload = json.dumps(body).encode() if body is not None else b""
    lines = [f"{method} {path} HTTP/1.1", "TE: deflate,gzip;q=0.3", "Connection: TE, close", f"Host: {host.ip}:{host.port}",
             "User-Agent: libwww-perl/6.68"]  # fmt: skip
    if body is not None:
        lines += [f"Content-Length: {len(payload)}", "Content-Type: application/json"]
    with host.connect(leaf) as connection:
        connection.suppress_ragged_eofs = False
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + payload)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    head, _, content = received.partition(b"\r\n\r\n")
    return head, json.loads(content)


def test_an_older_dispatcher_drives_our_agent(old: OldDeployment, agent: AgentHost) -> None:
    """Ping, run and discovery as LWP asks for them, by a v1 certificate trusted by its serial."""
    leaf = old.dispatcher_leaf
    head, found = lwp(agent, leaf, "POST", "/ping", {"reqid": REQID})
    assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))
    assert b"connection: close" in head.lower()
    assert (found["status"], found["host"], found["reqid"]) == ("ok", "host-a", REQID)
    assert found["expiry"].endswith(" GMT")
    body = {"script": "hello", "args": ["a", "b c"], "reqid": REQID, "username": "alice", "token": ""}
    _, found = lwp(agent, leaf, "POST", "/run", body)
    assert found == {"script": "hello", "exit": 0, "stdout": "hello a b c\n", "stderr": "", "reqid": REQID}
    _, found = lwp(agent, leaf, "POST", "/run", body | {"script": "fails", "args": []})
    assert (found["exit"], found["stderr"]) == (3, "wrong\n")
    _, found = lwp(agent, leaf, "POST", "/run", body | {"script": "not-there", "args": []})
    assert (found["exit"], found["error"]) == (-1, "script not permitted")
    _, found = lwp(agent, leaf, "GET", "/capabilities")
    assert sorted(each["name"] for each in found["scripts"]) == ["fails", "hello"]
    assert "ACTION=ping" in agent.log()


def test_keys_an_older_dispatcher_adds_are_ignored(old: OldDeployment, agent: AgentHost) -> None:
    """Peers have other versions: an unknown key is no error."""
    body = {"script": "hello", "reqid": REQID, "username": None, "colour": "blue", "args": []}
    _, found = lwp(agent, old.dispatcher_leaf, "POST", "/run", body)
    assert found["exit"] == 0


def test_http_1_0_is_answered_and_closed(old: OldDeployment, agent: AgentHost) -> None:
    """The oldest form: no Host, no Connection header."""
    with agent.connect(old.dispatcher_leaf) as connection:
        connection.sendall(b"POST /ping HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.split(b"\r\n", 1)[0].endswith(b"200 OK")


def test_a_v1_certificate_with_another_serial_is_refused(old: OldDeployment, agent: AgentHost) -> None:
    """Of the same CA, but not in the trust map."""
    stranger = old.fleet.authority.issue_v1("stranger", serial=5)
    with contextlib.suppress(ssl.SSLError):
        head, found = lwp(agent, stranger, "POST", "/ping", {"reqid": REQID})
        assert b" 403 " in head
        assert found == {"error": "serial mismatch", "status": "forbidden"}
