"""New TLS connections with a P-256 certificate, each with one `GET /health`; clients are `openssl s_time`."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.load import tls_rate
from bench.row import Group, Row, compared
from bench.series import Series, at_least
from tests.support.polling import eventually

if TYPE_CHECKING:
    from bench.session import Session

_CLIENTS = 8


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    """Whether somebody accepts there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def measure(session: Session) -> Iterable[Row]:
    """Ours, the stdlib server both ways, and `openssl s_server` as the yardstick of the handshake alone."""
    if shutil.which("openssl") is None:
        from bench.session import skipped

        yield skipped("tls-c8", "new TLS connections", "no openssl")
        return
    leaf = session.authority.issue("localhost")
    ports = {
        "ours": session.deployment.api("tls", api_cert=leaf.crt, api_key=leaf.key_path).port,
        "stdlib": session.daemon(
            session.baseline("stdlib_server", "--tls", leaf.pem), "stdlib-tls"
        ).announcement()["port"],
        "stdlib raised": session.daemon(
            session.baseline("stdlib_server", "--raised", "--tls", leaf.pem), "stdlib-tls-raised"
        ).announcement()["port"],
    }
    ports["s_server"] = free_port()
    session.daemon(
        [
            "openssl",
            "s_server",
            "-accept",
            f"127.0.0.1:{ports['s_server']}",
            "-key",
            str(leaf.key_path),
            "-cert",
            str(leaf.crt),
            "-www",
            "-quiet",
        ],
        "s-server",
        announces=False,
    )
    eventually(lambda: is_listening(ports["s_server"]), what="s_server listens")
    rates: dict[str, list[float]] = {name: [] for name in ports}
    seconds = 1 if session.is_quick else 2
    for turn in range(session.sizes.rounds):
        for name in sorted(ports, reverse=bool(turn % 2)):
            rates[name].append(tls_rate(ports[name], _CLIENTS, seconds))
    found = {name: Series(tuple(each)) for name, each in rates.items()}
    for other, target in (("stdlib raised", at_least(1.35)), ("stdlib", None), ("s_server", None)):
        words = {
            "stdlib": "the stdlib server as it comes",
            "stdlib raised": "the stdlib server with raised limits",
            "s_server": "`openssl s_server`, one process without a fork",
        }[other]
        yield compared(
            "tls-c8" if target else f"tls-c8-{other.replace(' ', '-')}",
            f"new TLS P-256 connections a second, {_CLIENTS} clients, to {words}",
            ("ours /s", found["ours"]),
            (f"{other} /s", found[other]),
            target,
            floor=session.floor,
        )


GROUP = Group("tls", "new TLS connections, beside the stdlib server", measure)
