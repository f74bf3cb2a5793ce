"""The loop that drives exchanges: names, deadlines, room, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest

from ctrl_exec.common import tls
from ctrl_exec.common.tls import Context
from ctrl_exec.services.descriptors import room_for
from ctrl_exec.services.loop import Loop, LoopLimits
from ctrl_exec.services.transport import Answer, Call
from tests.support.descriptors import open_descriptors
from tests.support.emulated import Fleet
from tests.support.processes import children_of
from tests.support.sockets import wrap

NAMES: dict[str, bytes] = {}


def resolve(name: str) -> bytes:
    """A resolver with names of its own; `stuck` never answers."""
    if name.startswith("stuck"):
        signal.pause()
    return NAMES.get(name, b"!Name or service not known")


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Thirty agents, reachable by names too; `twice` has an address where nobody listens as well."""
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    made.add_many(30)
    made.add("slow", delay_s=600)
    for agent in made.agents:
        NAMES[agent.name] = f"{int(socket.AF_INET)} {agent.ip}".encode()
    NAMES["twice"] = f"{int(socket.AF_INET6)} ::1\n".encode() + NAMES["host-0001"]
    with made:
        yield made


@pytest.fixture(scope="module")
def context(agents: Fleet) -> Context:
    """Our side of the handshake."""
    identity = str(agents.identity.pem)
    return tls.client_context(identity, identity, ca=agents.ca)


def run(calls: list[Call], context: Context, **limits: float) -> dict[str, Answer]:
    """All answers by key, from a loop whose children and descriptors are gone afterwards."""
    before = set(children_of(os.getpid())), open_descriptors()
    settings = {"connect_timeout_s": 30.0} | limits
    loop = Loop(list(enumerate(calls)), context, LoopLimits(**settings), resolve=resolve)  # type: ignore[arg-type]
    found = {answer.key: answer for _, answer in loop.run()}
    assert (set(children_of(os.getpid())), open_descriptors()) == before
    return found


def reason_of(answer: Answer) -> tuple[str, str]:
    """Kind and reason of a failure."""
    assert answer.failure is not None
    return answer.failure.kind, answer.failure.reason


def test_names_lead_to_agents(agents: Fleet, context: Context) -> None:
    """Each name is resolved once, however often it is called."""
    calls = [agents.call(agent.name, host=agent.name) for agent in agents.agents if agent.name != "slow"]
    calls += [agents.call("host-0001", key=f"again-{number}", host="host-0001") for number in range(10)]
    assert {answer.status for answer in run(calls, context).values()} == {200}


def test_a_name_with_two_addresses_is_reached_by_the_one_that_answers(
    agents: Fleet, context: Context
) -> None:
    """Nobody listens on the first."""
    call = agents.call("host-0001", key="twice", host="twice")
    assert run([call], context)["twice"].status == 200


def test_names_that_do_not_resolve_fail_alone(agents: Fleet, context: Context) -> None:
    """Unknown at once, stuck after the time limit, beyond the call's own deadline before that."""
    calls = [
        agents.call("host-0001"),
        agents.call("host-0001", key="unknown", host="unknown"),
        agents.call("host-0001", key="stuck", host="stuck"),
        agents.call("host-0001", key="hurried", host="stuck-too", deadline=time.monotonic() + 2.0),
    ]
    found = run(calls, context, connect_timeout_s=4.0)
    assert found["host-0001"].status == 200
    assert reason_of(found["unknown"]) == ("unreachable", "name resolution: name or service not known")
    assert reason_of(found["stuck"]) == ("unreachable", "name resolution timeout after 4s")
    assert reason_of(found["hurried"]) == ("timeout", "its time was over before its name was resolved")


def test_a_loop_that_is_left_closes_everything(agents: Fleet, context: Context) -> None:
    """In the middle of a run, of a handshake and of a name."""
    before = set(children_of(os.getpid())), open_descriptors()
    calls = [
        agents.call("slow"),
        agents.call("host-0001", key="stuck", host="stuck"),
        agents.call("host-0002"),
    ]
    answers = Loop(list(enumerate(calls)), context, LoopLimits(), resolve=resolve).run()
    assert next(answers)[1].key == "host-0002"
    answers.close()  # type: ignore[attr-defined]
    assert (set(children_of(os.getpid())), open_descriptors()) == before


def in_child_with(soft: int, hard: int, work: Iterator[bool]) -> bool:
    """Whether the work came out true in a forked process with that limit of descriptors."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            code = 0 if next(work) else 2
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def test_room_is_made_where_it_is_allowed() -> None:
    """The soft limit is raised to what is needed, and no higher than the hard one."""

    def work() -> Iterator[bool]:
        used = len(os.listdir("/proc/self/fd"))
        yield room_for(100) == 100 and room_for(10_000) < 500 - used

    assert in_child_with(64, 500, work())


def test_a_table_that_is_full_meanwhile_is_waited_for(agents: Fleet, context: Context) -> None:
    """Descriptors that others take while we run slow us down and fail nobody."""

    def work() -> Iterator[bool]:
        calls = [agents.call(f"host-{number:04d}") for number in range(1, 31)]
        answers = Loop(list(enumerate(calls)), context, LoopLimits(max_handshakes=4)).run()
        found = [next(answers)[1]]
        soft = len(os.listdir("/proc/self/fd")) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
        found += [answer for _, answer in answers]
        yield len(found) == 30 and all(answer.status == 200 for answer in found)

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert in_child_with(hard, hard, work())


def test_no_descriptor_at_all_is_a_failure_of_the_call(agents: Fleet, context: Context) -> None:
    """Said as such, and not waited for."""

    def work() -> Iterator[bool]:
        loop = Loop(list(enumerate([agents.call("host-0001")])), context, LoopLimits())
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        ((_, answer),) = loop.run()
        yield reason_of(answer) == ("unreachable", "too many open files")

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert in_child_with(hard, hard, work())


def serve_slowly(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Answer one connection after the other, twenty a second at most, for good."""
    pace = threading.Event()
    while True:
        pace.wait(0.05)
        plain, _ = listener.accept()
        with contextlib.suppress(OSError), wrap(context, plain, server_side=True) as sock:
            sock.recv(8192)
            sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            sock.unwrap()


@pytest.fixture
def slow_peers(agents: Fleet) -> Iterator[int]:
    """The port of peers that share one slow machine: a process of its own, as our descriptors are counted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(agents.leaves["host-0001"].pem)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port: int = listener.getsockname()[1]
        pid = os.fork()
        if pid == 0:
            try:
                serve_slowly(listener, context)
            finally:
                os._exit(1)
    yield port
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.long
def test_peers_that_share_a_slow_machine_are_not_drowned(
    agents: Fleet, context: Context, slow_peers: int
) -> None:
    """No more handshakes wait for it than it gets through before they time out."""
    calls = [
        agents.call("host-0001", key=str(number), host="127.0.0.1", port=slow_peers) for number in range(90)
    ]
    found = run(calls, context, max_handshakes=16, connect_timeout_s=4.0)
    assert {key: answer.failure for key, answer in found.items() if answer.failure} == {}
