"""TLS sockets: whatever happens while one is made, no descriptor stays open."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrl_exec.common.errors import CertificateError
from ctrl_exec.common.tls import client_context, server_context, wrap
from tests.support.pki import TestCA
from tests.support.sockets import reset


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield client, server


def context(*, server_side: bool) -> ssl.SSLContext:
    """One that suffices to begin."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    return made


@pytest.mark.parametrize("server_side", [False, True])
def test_a_reset_before_the_handshake_leaves_nothing_open(
    pair: tuple[socket.socket, socket.socket], *, server_side: bool
) -> None:
    """The descriptor is closed and nobody is warned of it."""
    ours, theirs = pair
    number = ours.fileno()
    reset(theirs, ours)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(ConnectionResetError):
            wrap(context(server_side=server_side), ours, server_side=server_side, handshake=False)
        gc.collect()
    assert [str(each.message) for each in warned] == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_socket_that_somebody_forgot_still_warns(pair: tuple[socket.socket, socket.socket]) -> None:
    """Only what could not be closed by anybody else is closed quietly."""
    ours, _ = pair
    forgotten = [wrap(context(server_side=False), ours, handshake=False)]
    with pytest.warns(ResourceWarning, match="unclosed"):
        forgotten.clear()


def certificates_sent(server: ssl.SSLContext, client: ssl.SSLContext) -> int:
    """How many certificates a server shows in a handshake that must succeed, by what it writes in clear."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    both = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_side=False),
    ]
    shown = b""
    while both:
        for each in list(both):
            with contextlib.suppress(ssl.SSLWantReadError):
                each.do_handshake()
                both.remove(each)
            if each.server_side and to_client.pending:
                flight = to_client.read()
                shown += flight
                to_client.write(flight)
    return shown.count(COMMON_NAME)


COMMON_NAME = b"\x55\x04\x03"


@pytest.fixture
def authority(tmp_path: Path) -> TestCA:
    """A CA of its own."""
    return TestCA(tmp_path)


def test_the_issuer_goes_along_as_it_would_without_us(authority: TestCA) -> None:
    """Ours beside what OpenSSL completes by itself: the same certificates on the wire."""
    leaf = authority.issue("host-a")
    client = client_context(None, None, ca=str(authority.path))
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # whose certificates go in clear
    ours = server_context(
        str(leaf.crt), str(leaf.key_path), client_ca=str(authority.path), issuer=str(authority.path)
    )
    theirs = server_context(str(leaf.crt), str(leaf.key_path), client_ca=str(authority.path))
    assert certificates_sent(ours, client) == certificates_sent(theirs, client) == 4  # two names in each


def test_a_chain_that_is_there_already_stays(authority: TestCA, tmp_path: Path) -> None:
    leaf = authority.issue("host-a")
    chain = tmp_path / "chain.pem"
    chain.write_bytes(leaf.crt.read_bytes() + authority.path.read_bytes())
    client = client_context(None, None, ca=str(authority.path))
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    context = server_context(str(chain), str(leaf.key_path), issuer=str(authority.path))
    assert certificates_sent(context, client) == 4


def test_a_key_that_does_not_fit_is_named_with_its_files(authority: TestCA) -> None:
    one, other = authority.issue("host-a"), authority.issue("host-b")
    with pytest.raises(
        CertificateError, match=f"^{one.crt}: no usable certificate with its key {other.key_path}"
    ):
        client_context(str(one.crt), str(other.key_path), ca=str(authority.path))


def test_an_issuer_that_is_missing_is_said_of_the_roots(authority: TestCA, tmp_path: Path) -> None:
    leaf = authority.issue("host-a")
    with pytest.raises(CertificateError, match=r"none\.pem: does not exist"):
        client_context(str(leaf.crt), str(leaf.key_path), ca=str(tmp_path / "none.pem"))
