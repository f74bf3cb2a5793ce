"""Connections that bring nothing: addresses, limits, silence, wrong protocols, too many at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.addresses import own_ip
from tests.support.agents import AgentHost, connection_outcome
from tests.support.pki import TestCA
from tests.support.polling import eventually
from tests.support.processes import children_of

PING = {"reqid": "0123456789abcdef"}


@pytest.fixture
def other(ca: TestCA) -> Iterator[str]:
    """An address that only this test connects from."""
    return own_ip()


def plain(host: AgentHost, source: str) -> socket.socket:
    return socket.create_connection((host.ip, host.port), timeout=60, source_address=(source, 0))


def test_only_allowed_addresses_are_heard(host: AgentHost, other: str):
    friend = own_ip()
    host.configure(f"allowed_ips = 2001:db8::/32, {friend}/32\n")
    with host.start():
        assert host.ask("POST", "/ping", PING, source=friend).status == 200
        assert "closed" in connection_outcome(host, host.dispatcher, source=other)
        assert f'ACTION=ip-block PEER={other} REASON="not in allowed_ips"' in host.log()


def test_three_probes_block_an_address_and_no_other(agent: AgentHost, ca: TestCA, other: str):
    for _ in range(3):
        assert "closed" in connection_outcome(agent, None, source=other)
    eventually(lambda: f"ACTION=rate-block LIMIT=probe PEER={other}" in agent.log())
    assert "closed" in connection_outcome(agent, agent.dispatcher, source=other)
    assert agent.ask("POST", "/ping", PING, source=own_ip()).status == 200


def test_an_untrusted_serial_counts_as_a_probe(agent: AgentHost, ca: TestCA, other: str):
    stranger = ca.dispatcher("main")
    for _ in range(3):
        assert "403" in connection_outcome(agent, stranger, source=other)
    eventually(lambda: f"LIMIT=probe PEER={other}" in agent.log())
    assert "closed" in connection_outcome(agent, stranger, source=other)


def test_an_address_a_trusted_serial_came_from_is_exempt(agent: AgentHost, other: str):
    assert agent.ask("POST", "/ping", PING, source=other).status == 200
    eventually(lambda: not children_of(agent.running.pid))  # type: ignore[union-attr]
    for _ in range(12):
        assert "closed" in connection_outcome(agent, None, source=other)
    assert agent.ask("POST", "/ping", PING, source=other).status == 200
    assert "rate-block" not in agent.log()


def test_connections_that_come_and_go_without_a_word_count_by_volume_only(host: AgentHost, other: str):
    host.configure("rate_limit_volume = 5/60/300\n")
    with host.start():
        for _ in range(5):
            with plain(host, other):
                pass
        eventually(lambda: f"LIMIT=volume PEER={other} SECONDS=300" in host.log())
        assert "LIMIT=probe" not in host.log()
        assert "ACTION=tls-failure" not in host.log()
        assert "closed" in connection_outcome(host, host.dispatcher, source=other)


def test_half_a_handshake_is_a_probe(host: AgentHost, other: str):
    with host.start():
        for _ in range(3):
            with plain(host, other) as connection:
                connection.sendall(b"\x16")
        eventually(lambda: f"LIMIT=probe PEER={other} SECONDS=3600" in host.log())


def test_limits_can_be_switched_off(host: AgentHost, other: str):
    host.configure("rate_limit_disable = yes\n")
    with host.start():
        for _ in range(15):
            connection_outcome(host, None, source=other)
        assert host.ask("POST", "/ping", PING, source=other).status == 200


def test_two_hundred_silent_connections_change_nothing(agent: AgentHost, other: str):
    with ExitStack() as silent:
        for _ in range(200):
            silent.enter_context(plain(agent, other))
        assert agent.ask("POST", "/ping", PING).status == 200
        assert len(children_of(agent.running.pid)) <= 1  # type: ignore[union-attr]


def test_half_open_handshakes_leave_room_for_a_dispatcher(host: AgentHost):
    host.configure("max_children = 16\nrate_limit_disable = yes\n")
    with host.start(), ExitStack() as half_open:
        for _ in range(60):
            connection = half_open.enter_context(plain(host, own_ip()))
            connection.sendall(b"\x16\x03\x01\x02\x00\x01")
        for _ in range(3):
            assert host.ask("POST", "/ping", PING).status == 200
        eventually(lambda: len(children_of(host.running.pid)) <= 16)  # type: ignore[union-attr]


def test_plain_http_and_garbage_on_the_port_harm_nothing(agent: AgentHost, other: str):
    for first in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x00", os.urandom(4096)):
        with plain(agent, own_ip()) as connection:
            connection.sendall(first)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    with plain(agent, other):
        pass
    assert agent.ask("POST", "/ping", PING).status == 200
    eventually(lambda: "not a TLS handshake" in agent.log())


def test_idle_dispatchers_give_way_when_the_agent_is_full(host: AgentHost):
    host.configure("max_children = 8\n")
    with host.start(), ExitStack() as kept:
        for _ in range(20):
            assert host.ask("POST", "/ping", PING).status == 200
            kept.enter_context(host.connect())
        eventually(lambda: len(children_of(host.running.pid)) <= 9)  # type: ignore[union-attr]


def test_hundreds_of_requests_leave_no_descriptor_no_zombie_and_no_memory(agent: AgentHost):
    pid = agent.running.pid  # type: ignore[union-attr]

    def measure() -> tuple[int, int]:
        rss = next(
            int(line.split()[1])
            for line in Path(f"/proc/{pid}/status").read_text().split("\n")
            if "VmRSS" in line
        )
        return len(os.listdir(f"/proc/{pid}/fd")), rss

    for _ in range(20):
        agent.ask("POST", "/ping", PING)
    eventually(lambda: not children_of(pid))
    descriptors, rss_kib = measure()
    for _ in range(300):
        assert agent.ask("POST", "/ping", PING).status == 200
    eventually(lambda: not children_of(pid))
    later_descriptors, later_rss_kib = measure()
    assert later_descriptors == descriptors
    assert later_rss_kib - rss_kib < 1024
