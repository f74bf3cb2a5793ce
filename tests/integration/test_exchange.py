"""One connection's state machine, moved by hand: addresses, deadlines, room."""

from __future__ import annotations

import gc
import resource
import select
import socket
import time
import warnings
from collections.abc import Iterator

import pytest

from ctrl_exec.common import tls
from ctrl_exec.common.tls import Context, blind_context
from ctrl_exec.services.exchange import CONNECTING, DONE, Exchange, NoRoomError
from ctrl_exec.services.transport import Answer, Call
from tests.support.emulated import Fleet
from tests.support.sockets import reset


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One agent."""
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    made.add("host-a")
    with made:
        yield made


@pytest.fixture(scope="module")
def context(fleet: Fleet) -> Context:
    """Our side of the handshake."""
    identity = str(fleet.identity.pem)
    return tls.client_context(identity, identity, ca=fleet.ca)


def drive(exchange: Exchange, context: Context) -> Answer:
    """Move it until it ends."""
    while exchange.phase != DONE:
        assert exchange.sock is not None
        poller = select.poll()
        poller.register(exchange.sock.fileno(), exchange.wants)
        left_s = max(0.0, exchange.deadline - time.monotonic())
        if poller.poll(left_s * 1000 + 1):
            exchange.step(context, time.monotonic())
        else:
            exchange.expire(time.monotonic())
    assert exchange.answer is not None
    return exchange.answer


def deaf() -> socket.socket:
    """A listening socket whose queue is full: connections to it hang."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    listener.setblocking(False)
    return listener


def test_the_next_address_is_tried_when_one_refuses(fleet: Fleet, context: Context) -> None:
    """A name with an IPv6 address where nobody listens is reached by IPv4."""
    exchange = Exchange(0, fleet.call("host-a"), 5.0)
    exchange.open(((socket.AF_INET6, "::1"), (socket.AF_INET, fleet.agent("host-a").ip)), time.monotonic())
    assert drive(exchange, context).status == 200
    assert exchange.attempts == 2


def test_the_last_refusal_is_the_answer(fleet: Fleet, context: Context) -> None:
    """All addresses refuse."""
    exchange = Exchange(0, fleet.call("host-a", port=1), 5.0)
    exchange.open(((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2")), time.monotonic())
    failure = drive(exchange, context).failure
    assert failure is not None
    assert (failure.kind, failure.reason) == ("unreachable", "connection refused")


@pytest.mark.parametrize("port", [-1, 0, 65536, 1 << 40])
def test_a_port_that_is_none_is_unreachable(fleet: Fleet, context: Context, port: int) -> None:
    """No exception, whatever a record says."""
    exchange = Exchange(0, fleet.call("host-a", port=port), 5.0)
    exchange.open(((socket.AF_INET, "127.0.0.1"),), time.monotonic())
    failure = drive(exchange, context).failure
    assert failure is not None
    assert failure.kind == "unreachable"


def test_an_address_that_hangs_is_left_for_the_next(fleet: Fleet, context: Context) -> None:
    """After the connect timeout, and the answer comes from there."""
    exchange = Exchange(0, fleet.call("host-a"), 5.0)
    address = (socket.AF_INET, fleet.agent("host-a").ip)
    exchange.open((address, address), time.monotonic())
    exchange.expire(exchange.deadline)
    assert (exchange.phase, exchange.attempts) == (CONNECTING, 2)
    assert drive(exchange, context).status == 200


def test_connecting_has_an_end() -> None:
    """The time that a connection may take is in the error."""
    with deaf() as listener:
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        port = listener.getsockname()[1]
        exchange = Exchange(0, Call("x", "127.0.0.1", port, b""), 0.3)
        exchange.open(((socket.AF_INET, "127.0.0.1"),), time.monotonic())
        failure = drive(exchange, blind_context()).failure
        for filler in fillers:
            filler.close()
    assert failure is not None
    assert failure.kind == "unreachable"
    assert failure.reason in ("connect timeout after 0.3s", "TLS handshake timeout after 0.3s")


def test_a_reset_between_connection_and_handshake_is_unreachable() -> None:
    """No socket is left to the garbage collector."""
    with socket.create_server(("127.0.0.1", 0)) as listener, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        exchange = Exchange(0, Call("x", "127.0.0.1", listener.getsockname()[1], b""), 5.0)
        exchange.open(((socket.AF_INET, "127.0.0.1"),), time.monotonic())
        peer, _ = listener.accept()
        assert exchange.sock is not None
        reset(peer, exchange.sock)
        failure = drive(exchange, blind_context()).failure
        gc.collect()
    assert failure is not None
    assert (failure.kind, failure.reason, failure.sent) == ("unreachable", "connection reset by peer", False)
    assert [str(each.message) for each in warned] == []


def test_no_descriptor_is_no_failure_of_the_host(fleet: Fleet) -> None:
    """The caller is told to come again, and the exchange can still begin."""
    exchange = Exchange(0, fleet.call("host-a"), 5.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # all that are open are beyond it
    try:
        with pytest.raises(NoRoomError):
            exchange.open(((socket.AF_INET, "127.0.0.1"),), time.monotonic())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert exchange.sock is None
