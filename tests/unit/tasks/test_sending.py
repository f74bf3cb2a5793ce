"""Outgoing requests that can be ended whatever they wait for: names that hang, servers that are silent."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from ctrl_exec.common.process import fork_child, is_group_alive, wait_status
from ctrl_exec.tasks.outbound.outgoing import Allowance, OutgoingError, OutgoingRequest, read_allowance, send
from ctrl_exec.tasks.outbound.resolving import addresses_of
from ctrl_exec.tasks.outbound.sending import send_apart
from tests.support.polling import eventually

FAR_S = 600.0


def hang(_name: str) -> bytes:
    """A resolver that never answers."""
    signal.pause()
    return b""


def saying(reply: bytes) -> Callable[[str], bytes]:
    """A resolver that always says the same."""
    return lambda _: reply


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def request_to(listener: socket.socket) -> OutgoingRequest:
    return OutgoingRequest("GET", f"http://127.0.0.1:{listener.getsockname()[1]}/")


def opened(listener: socket.socket) -> Allowance:
    return read_allowance([f"127.0.0.1:{listener.getsockname()[1]}"])


def has_caller(listener: socket.socket) -> bool:
    """Whether somebody has connected."""
    return bool(select.select([listener], [], [], 0)[0])


def test_addresses_are_those_of_the_system() -> None:
    """Literals are taken as they are, whatever the resolver says; odd spellings are the system's to read."""
    assert addresses_of("127.0.0.1", monotonic() + FAR_S, hang) == ((socket.AF_INET, "127.0.0.1"),)
    assert addresses_of("::1", monotonic() + FAR_S, hang) == ((socket.AF_INET6, "::1"),)
    found = addresses_of("localhost", monotonic() + FAR_S)
    assert {address for _, address in found} <= {"127.0.0.1", "::1"}
    assert addresses_of("2130706433", monotonic() + FAR_S) == ((socket.AF_INET, "127.0.0.1"),)


def test_a_name_that_is_none_says_so() -> None:
    for name in ("x" * 300, "a..b"):
        with pytest.raises(OSError, match="name resolution"):
            addresses_of(name, monotonic() + FAR_S)


def test_a_resolver_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    """Neither whoever asks for the addresses, nor a request; the child that hung is gone."""

    def hang_noted(name: str) -> bytes:
        (tmp_path / "pid").write_text(str(os.getpid()))
        return hang(name)

    wait_s, pid = 0.1, ""
    while not pid and wait_s < 100:  # until its child came so far as to hang
        with pytest.raises(OSError, match="not resolved in time"):
            addresses_of("example.org", monotonic() + wait_s, hang_noted)
        wait_s *= 4
        pid = (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    request = OutgoingRequest("GET", "http://example.org/?secret")
    with pytest.raises(OutgoingError, match=r"^example\.org: its name is not resolved in time$"):
        send(request, Allowance(), timeout_s=0.05, resolve=hang)


def test_a_name_is_resolved_once_and_judged_by_what_it_was() -> None:
    """Each of its addresses: a public one beside an inner one does not help."""
    for reply, words in (
        (b"2 127.0.0.1", "loopback"), (b"2 93.184.215.14\n2 10.1.2.3", "private"),
        (b"10 ::ffff:169.254.169.254", "link-local"), (b"!no such name", "no such name"),
    ):  # fmt: skip
        with pytest.raises(OutgoingError, match=words):
            send(
                OutgoingRequest("GET", "http://example.org/"),
                Allowance(),
                timeout_s=60,
                resolve=saying(reply),
            )


def test_the_connection_goes_to_the_address_that_was_judged(silent: socket.socket) -> None:
    """Nobody asks for the name a second time."""
    request = OutgoingRequest("GET", f"http://example.org:{silent.getsockname()[1]}/")
    allowance, resolve = read_allowance(["127.0.0.0/8"]), saying(b"2 127.0.0.1")

    def ask() -> int:
        send(request, allowance, timeout_s=FAR_S, resolve=resolve)
        return 0

    pid = fork_child(ask)
    try:
        silent.settimeout(60)
        with silent.accept()[0] as peer:
            assert peer.recv(5) == b"GET /"
    finally:
        os.kill(pid, signal.SIGKILL)
        wait_status(pid)


def test_what_waits_is_ended_by_wish(silent: socket.socket) -> None:
    """With everything that it started."""
    pids: list[int] = []
    sent = send_apart(
        request_to(silent), opened(silent), timeout_s=FAR_S,
        wants_end=lambda: has_caller(silent), before_send=pids.append,
    )  # fmt: skip
    assert (sent.answer, sent.was_ended) == (None, True)
    assert not is_group_alive(pids[0])


def test_what_waits_is_ended_at_its_time(silent: socket.socket) -> None:
    sent = send_apart(request_to(silent), opened(silent), timeout_s=0.1, wants_end=lambda: False)
    assert (sent.answer, sent.was_ended) == (None, False)


def test_what_is_refused_says_why(silent: socket.socket) -> None:
    with pytest.raises(OutgoingError, match="loopback"):
        send_apart(request_to(silent), Allowance(), timeout_s=FAR_S, wants_end=lambda: False)
    assert not has_caller(silent)


def test_nothing_is_sent_that_was_not_noted(silent: socket.socket) -> None:
    """Who cannot keep which group it is, does not begin it; nor does one whose maker died before."""

    def fail(_pid: int) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        send_apart(
            request_to(silent), opened(silent), timeout_s=FAR_S, wants_end=lambda: False, before_send=fail
        )

    def die(pid: int) -> None:
        os.write(told, f"{pid}\n".encode())
        os._exit(0)

    def carry() -> int:
        send_apart(
            request_to(silent), opened(silent), timeout_s=FAR_S, wants_end=lambda: False, before_send=die
        )
        return 1

    reading, told = os.pipe()
    try:
        assert wait_status(fork_child(carry)) == (0, 0)
        pid = int(os.read(reading, 20))
    finally:
        os.close(reading)
        os.close(told)
    eventually(lambda: not is_group_alive(pid))
    assert not has_caller(silent)


def test_a_child_that_is_killed_is_an_error(silent: socket.socket) -> None:
    with pytest.raises(OutgoingError, match="died"):
        send_apart(
            request_to(silent), opened(silent), timeout_s=FAR_S, wants_end=lambda: False,
            before_send=lambda pid: os.kill(pid, signal.SIGKILL),
        )  # fmt: skip
