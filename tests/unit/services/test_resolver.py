"""Names become addresses in children, and a stuck one is killed, not waited for."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from ctrl_exec.services.resolver import Resolver, ask_system, literal
from tests.support.processes import children_of


def resolve(name: str) -> bytes:
    """A resolver with names of its own; `stuck` never answers, `dies` takes its process along."""
    if name.startswith("stuck"):
        signal.pause()
    if name == "dies":
        os._exit(1)
    if name == "unknown":
        return b"!Name or service not known"
    return f"{int(socket.AF_INET)} 192.0.2.{len(name)}\n{int(socket.AF_INET6)} 2001:db8::1".encode()


class Loop:
    """The least of an owner: polls what the resolver watches."""

    def __init__(self, timeout_s: float) -> None:
        self.poller = select.poll()
        self.resolver = Resolver(
            timeout_s, lambda fd: self.poller.register(fd, select.POLLIN), self.poller.unregister, resolve
        )

    def resolve(self, *names: str) -> dict[str, tuple[tuple[tuple[int, str], ...], str]]:
        """The outcomes of all names."""
        found = {}
        for name in names:
            assert self.resolver.lookup(name, time.monotonic()) is None
        while self.resolver.is_busy:
            due = self.resolver.next_deadline()
            assert due is not None
            for fd, _ in self.poller.poll(max(1, int((due - time.monotonic()) * 1000))):
                for name, addresses, reason in self.resolver.receive(fd, time.monotonic()):
                    found[name] = (addresses, reason)
            for name, addresses, reason in self.resolver.expire(time.monotonic()):
                found[name] = (addresses, reason)
        return found


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop whose children are gone afterwards."""
    before = set(children_of(os.getpid()))
    made = Loop(0.5)
    yield made
    made.resolver.close()
    assert set(children_of(os.getpid())) == before


@pytest.mark.parametrize(
    ("text", "family"),
    [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("2001:db8::7", socket.AF_INET6)],
)
def test_a_literal_needs_no_child(loop: Loop, text: str, family: int) -> None:
    assert loop.resolver.lookup(text, 0.0) == (((family, text),), "")


@pytest.mark.parametrize("text", ["localhost", "127.1", "0x7f000001", "1.2.3", "web\0", ""])
def test_what_is_no_literal_is_none(text: str) -> None:
    """Old spellings of addresses are names, and as names they do not resolve."""
    assert literal(text) == ()


def test_names_are_resolved_and_remembered(loop: Loop) -> None:
    found = loop.resolve("one", "three")
    assert found["one"] == (((socket.AF_INET, "192.0.2.3"), (socket.AF_INET6, "2001:db8::1")), "")
    assert loop.resolver.lookup("one", 0.0) == found["one"]


def test_an_unknown_name_says_so(loop: Loop) -> None:
    assert loop.resolve("unknown") == {"unknown": ((), "name resolution: name or service not known")}


def test_a_stuck_name_is_given_up_and_the_others_are_not(loop: Loop) -> None:
    found = loop.resolve("stuck", *(f"n{number}" for number in range(40)))
    assert found["stuck"] == ((), "name resolution timeout after 0.5s")
    assert len(found) == 41
    assert all(addresses for name, (addresses, _) in found.items() if name != "stuck")


def test_a_dead_server_fails_all_names_at_once(loop: Loop) -> None:
    """Fifty names that nobody answers take one time limit, not one after the other."""
    found = loop.resolve(*(f"stuck{number}" for number in range(50)))
    assert {reason for _, reason in found.values()} == {"name resolution timeout after 0.5s"}
    assert len(found) == 50


def test_a_child_that_dies_fails_its_name_alone(loop: Loop) -> None:
    found = loop.resolve("dies", "lives")
    assert found["dies"] == ((), "the resolver process died")
    assert found["lives"][0]


def test_the_system_resolves_localhost() -> None:
    assert b"127.0.0.1" in ask_system("localhost")


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a" * 300, "..", "ü" * 80])
def test_the_system_says_why_not(name: str) -> None:
    assert ask_system(name).startswith(b"!")
