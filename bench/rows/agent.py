"""One request to a real agent on a new connection, beside the same work in one process; idle memory."""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.row import Group, Row, compared, measured
from bench.series import Series, at_most
from bench.timing import MIB, ProbeError, rss_bytes

if TYPE_CHECKING:
    from bench.session import Session

_BATCH = 11  # requests, the median of which is one measurement


def request() -> bytes:
    """A `POST /run` of `true` with an id of its own: an agent answers a known one from its spool."""
    body = json.dumps(
        {"script": "true", "args": [], "reqid": secrets.token_hex(8), "username": "", "token": ""}
    )
    head = "POST /run HTTP/1.1\r\nHost: agent\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def ask(context: ssl.SSLContext, address: tuple[str, int]) -> float:
    """Milliseconds from connect to the end of the answer."""
    asked = request()
    start = time.perf_counter()
    plain = socket.create_connection(address, timeout=30)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with context.wrap_socket(plain) as connection:
        connection.sendall(asked)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    took_s = time.perf_counter() - start
    if b'"exit": 0' not in answer.replace(b'"exit":0', b'"exit": 0'):
        raise ProbeError(f"an agent answered {answer!r}")
    return took_s * 1e3


def measure(session: Session) -> Iterable[Row]:
    """Requests taking turns; then the memory of the idle agent."""
    deployment = session.deployment
    agent = deployment.agent
    time.sleep(0.5)
    idle = Series(tuple(rss_bytes(agent.daemon.pid) / MIB for _ in range(session.sizes.rounds)))
    leaf = session.authority.issue("single")
    spool = session.work / "spool"
    spool.mkdir()
    argv = session.baseline("one_process_agent", "127.0.0.1", leaf.pem, session.authority.path)
    plain, spooling = (
        session.daemon([*argv, *more], f"one-process-{len(more)}").announcement()["port"]
        for more in ((), (str(spool),))
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_cert_chain(deployment.identity.pem)
    context.load_verify_locations(session.authority.path)
    addresses = {
        "ours": (agent.ip, agent.port),
        "same work": ("127.0.0.1", spooling),
        "no spool": ("127.0.0.1", plain),
    }
    found: dict[str, list[float]] = {name: [] for name in addresses}
    for turn in range(session.sizes.repeats + 1):
        for name, address in addresses.items():
            median_ms = Series(tuple(ask(context, address) for _ in range(_BATCH))).median
            if turn:
                found[name].append(median_ms)
    what = "one `/run` of `true` on a new connection, to one process that does"
    ours = ("ours ms", Series(tuple(found["ours"])))
    yield compared(
        "agent", f"{what} the same, the record on disk before and after", ours,
        ("same work ms", Series(tuple(found["same work"]))), at_most(1.9), floor=session.floor,
    )  # fmt: skip
    yield compared(
        "agent-no-spool", f"{what} without any record", ours,
        ("no spool ms", Series(tuple(found["no spool"]))), floor=session.floor,
    )  # fmt: skip
    yield measured(
        "agent-idle-rss", "idle agent: RSS", ("ours MiB", idle), "MiB", at_most(17.5)
    )  # fmt: skip


GROUP = Group("agent", "a real agent, one request on a new connection; idle memory", measure)
