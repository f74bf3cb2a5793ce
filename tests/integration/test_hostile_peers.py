"""Hostile clients against the real programs: API (plain and TLS), agent and pairing port.

Whatever is done to a port from one address, another client is served meanwhile and afterwards, and
no process, descriptor or memory is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.fleet import Fleet
from tests.support.pki import TestCA
from tests.support.polling import eventually
from tests.support.processes import Running, children_of
from tests.support.sockets import wrap

ATTACKER = "127.99.7.1"
PORTS = ("api", "api-tls", "agent", "pairing")
TLS_PORTS = PORTS[1:]


@dataclass
class Port:
    """A port of one of our programs, and how an honest client is served there."""

    name: str
    ip: str
    number: int
    pid: int
    serves: Callable[[], bool]
    has_tls: bool = True
    attackers: list[socket.socket] = field(default_factory=list)

    def attack(self, payload: bytes = b"", *, source: str = ATTACKER) -> socket.socket:
        """A connection that has sent the payload and nothing more; closed at the end of the test."""
        connection = socket.socket()
        connection.settimeout(60)
        connection.bind((source, 0))
        connection.connect((self.ip, self.number))
        self.attackers.append(connection)
        with contextlib.suppress(ConnectionError):
            connection.sendall(payload)
        return connection

    def attack_inside(self, *, source: str = ATTACKER) -> ssl.SSLSocket:
        """A connection whose TLS handshake is done, without a client certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        inside = wrap(context, self.attack(source=source))
        self.attackers.append(inside)
        return inside

    def release(self) -> None:
        """Close all attacking connections."""
        for each in self.attackers:
            each.close()
        self.attackers.clear()


def read_all(connection: socket.socket, *, timeout_s: float = 40.0) -> bytes:
    """What comes until the other side closes, or resets."""
    connection.settimeout(timeout_s)
    received = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while piece := connection.recv(65536):
            received += piece
            assert len(received) < 1 << 20
    return received


def client_hello() -> bytes:
    """The first bytes of a TLS handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    talker = context.wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        talker.do_handshake()
    return outgoing.read()


def exchange(connection: socket.socket, request: bytes) -> bytes:
    """One request, one answer to the end."""
    connection.sendall(request)
    return read_all(connection)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Port]]:
    """A fleet with host-a, the API with and without TLS, and pairing mode, all up."""
    directory = tmp_path_factory.mktemp("hostile")
    fleet = Fleet(directory)
    with contextlib.ExitStack() as stack:
        stack.callback(fleet.close)
        fleet.add("host-a")
        api = fleet.start_api()
        secure, secure_port = start_secure_api(fleet, directory)
        stack.enter_context(secure)
        pairing = stack.enter_context(fleet.pairing_mode())
        agent = fleet.agents["host-a"]
        assert agent.running is not None
        yield {
            "api": Port("api", "127.0.0.1", fleet.api_port, api.pid, lambda: fleet.http("GET", "/health").status == 200, False),
            "api-tls": Port("api-tls", "127.0.0.1", secure_port, secure.pid, lambda: secure_health(secure_port)),
            "agent": Port("agent", agent.ip, agent.port, agent.running.pid, lambda: pings(fleet)),
            "pairing": Port("pairing", fleet.pairing_ip, fleet.pairing_port, pairing.pid, lambda: pairs(fleet.pairing_ip)),
        }  # fmt: skip


def start_secure_api(fleet: Fleet, directory: Path) -> tuple[Running, int]:
    """A second API of the same dispatcher, with TLS."""
    leaf = TestCA(directory / "api-ca").issue("api")
    conf = fleet.home / "etc" / "secure.conf"
    conf.write_text(
        fleet.conf.read_text() + f"api_cert = {leaf.crt}\napi_key = {leaf.key_path}\napi_bind = 127.0.0.1\n"
    )
    running = Running("ctrl-exec-api", "--config", conf, log_path=fleet.home / "secure.log")
    return running, running.port()


def secure_health(number: int) -> bool:
    """Whether `/health` is answered over TLS, closed properly."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", number), timeout=60)
    with plain, wrap(context, plain) as inside:
        return b" 200 " in exchange(inside, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")


def pings(fleet: Fleet) -> bool:
    """Whether the dispatcher's ping is answered."""
    results = fleet.cli_json("ping", "host-a")["results"]
    assert isinstance(results, list)
    return bool(results[0]["status"] == "ok")


def pairs(ip: str) -> bool:
    """Whether the pairing port answers a request, here one it must refuse."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    body = json.dumps({"hostname": "../evil", "csr": "x", "nonce": "0" * 32}).encode()
    request = b"POST /pair HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    plain = socket.create_connection((ip, 7444), timeout=60)
    with plain, wrap(context, plain) as inside:
        return b'"error"' in exchange(inside, request)


@pytest.fixture(params=PORTS)
def port(request: pytest.FixtureRequest, home: dict[str, Port]) -> Iterator[Port]:
    """Each port in turn; afterwards it serves, and the children made for the attack are gone."""
    yield from attacked(home[request.param])


@pytest.fixture(params=TLS_PORTS)
def tls_port(request: pytest.FixtureRequest, home: dict[str, Port]) -> Iterator[Port]:
    """Each port that speaks TLS."""
    yield from attacked(home[request.param])


def attacked(found: Port) -> Iterator[Port]:
    """The port, and what must hold when it is over."""
    before = resting_children(found)
    yield found
    found.release()
    assert found.serves()
    eventually(lambda: resting_children(found) <= before, timeout_s=60, what="the children end")


def resting_children(found: Port) -> int:
    """How many children the program has."""
    return len(children_of(found.pid))


def resident_bytes(pid: int) -> int:
    """The resident memory of the process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    """How many descriptors the process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


GARBAGE = {
    "zeros": b"\0" * 4096,
    "binary": bytes(range(256)) * 64,
    "a line": b"hello\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "bad record": b"\x16\x03\x01\xff\xff" + b"x" * 70_000,
    "huge hello": b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc" + b"\xff" * 16_380,
    "sslv2": b"\x80\x2e\x01\x00\x02" + b"\0" * 44,
    "alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "smb": b"\x00\x00\x00\x85\xffSMBr",
    "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_harms_nobody(port: Port, kind: str) -> None:
    """The connection ends, by an answer or without; another client is served."""
    connection = port.attack(GARBAGE[kind])
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
    assert port.serves()
    read_all(connection)


@pytest.mark.parametrize(
    "request_line", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /health HTTP/1.0\r\n\r\n"]
)
def test_plain_http_on_a_tls_port_is_closed(tls_port: Port, request_line: bytes) -> None:
    """Nothing of ours answers it in plain text."""
    received = read_all(tls_port.attack(request_line))
    assert b"HTTP/1" not in received or b" 400 " in received  # the API says that it wants https
    assert b'"ok": true' not in received


def test_connections_that_are_reset_at_once(port: Port) -> None:
    """Port scanners: fifty of them."""
    for _ in range(50):
        connection = port.attack()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    assert port.serves()


def test_silent_connections_hold_up_nobody(port: Port) -> None:
    """Three hundred connections say nothing: another client is served, the parent does not grow."""
    memory = resident_bytes(port.pid)
    for _ in range(300):
        with contextlib.suppress(ConnectionError):
            port.attack()
    assert port.serves()
    assert port.serves()
    assert resident_bytes(port.pid) < memory + (8 << 20)
    port.release()
    eventually(lambda: descriptors(port.pid) < 100, timeout_s=60, what="the descriptors are closed")


@pytest.mark.parametrize("name", ["api", "api-tls", "agent"])
@pytest.mark.parametrize("kind", ["silent", "half a handshake"])
def test_attacks_from_the_clients_own_address_hold_up_nobody(
    home: dict[str, Port], name: str, kind: str
) -> None:
    """Also from loopback, and from where a trusted dispatcher came, no limit by address protects us."""
    payload = b"" if kind == "silent" else client_hello()[:100]
    for found in attacked(home[name]):
        assert found.serves()
        for _ in range(300):
            with contextlib.suppress(ConnectionError):
                found.attack(payload, source="127.0.0.1")
        assert found.serves()
        assert found.serves()


def test_half_open_handshakes_hold_up_nobody(tls_port: Port) -> None:
    """Two hundred connections send half a ClientHello."""
    hello = client_hello()
    for _ in range(200):
        with contextlib.suppress(ConnectionError):
            tls_port.attack(hello[: len(hello) // 2])
    assert tls_port.serves()


def test_handshakes_that_are_not_finished_hold_up_nobody(tls_port: Port) -> None:
    """A hundred connections send a whole ClientHello and never go on."""
    hello = client_hello()
    for _ in range(100):
        with contextlib.suppress(ConnectionError):
            tls_port.attack(hello)
    assert tls_port.serves()


def test_slow_heads_hold_up_nobody(home: dict[str, Port]) -> None:
    """Forty clients drip a request head, a byte at a time; another is served while they do."""
    for found in attacked(home["api"]):
        slow = [found.attack(b"GET /health HTTP/1.1\r\nX-Slow: ") for _ in range(40)]
        for _ in range(5):
            for each in slow:
                with contextlib.suppress(ConnectionError):
                    each.sendall(b"a")
            assert found.serves()


def test_slow_heads_inside_tls_hold_up_nobody(home: dict[str, Port]) -> None:
    """The same behind a finished handshake, where it is open to everybody."""
    for name in ("api-tls", "pairing"):
        for found in attacked(home[name]):
            for _ in range(20):
                with contextlib.suppress(OSError):
                    found.attack_inside().sendall(b"POST /pair HTTP/1.1\r\nX-Slow: ")
            assert found.serves()


def test_slow_bodies_hold_up_nobody(home: dict[str, Port]) -> None:
    """A body that is announced and does not come: nobody waits for it."""
    head = b"POST /run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{"
    for found in attacked(home["api"]):
        for _ in range(20):
            found.attack(head)
        assert found.serves()


def test_slow_readers_hold_up_nobody(home: dict[str, Port]) -> None:
    """Clients that ask for the largest answer and do not read it."""
    for found in attacked(home["api"]):
        for _ in range(30):
            connection = socket.socket()
            found.attackers.append(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.bind((ATTACKER, 0))
            connection.connect((found.ip, found.number))
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert found.serves()


def test_a_client_that_leaves_in_the_middle(port: Port) -> None:
    """Half a request, then the end; and half a handshake, then a reset."""
    for payload in (b"POST /run HTTP/1.1\r\nContent-Le", client_hello()[:40]):
        port.attack(payload).close()
        connection = port.attack(payload)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    assert port.serves()


def test_no_certificate_is_refused_by_the_agent(home: dict[str, Port]) -> None:
    """Before a byte of a request is read."""
    for found in attacked(home["agent"]):
        with contextlib.suppress(OSError):
            inside = found.attack_inside(source="127.99.7.2")
            assert read_all(inside) == b""


def test_endless_headers_and_lines_are_cut_off(home: dict[str, Port]) -> None:
    """The API answers 414 and 431 and stops reading; its memory does not follow."""
    for found in attacked(home["api"]):
        memory = resident_bytes(found.pid)
        for start, status in ((b"GET /", b" 414 "), (b"GET / HTTP/1.1\r\nX: ", b" 431 ")):
            connection = found.attack(start)
            connection.settimeout(0.2)
            sent = 0
            while sent < 64 << 20 and not select.select([connection], [], [], 0)[0]:
                with contextlib.suppress(TimeoutError):
                    try:
                        sent += connection.send(b"x" * 65536)
                    except ConnectionError:
                        break
            assert sent < 64 << 20
            assert status in read_all(connection) or sent > 1 << 16  # a reset can overtake the answer
        assert resident_bytes(found.pid) < memory + (4 << 20)
