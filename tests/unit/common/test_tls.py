"""TLS sockets: whatever happens while one is made, no descriptor stays open."""

from __future__ import annotations

import _socket
import contextlib
import gc
import os
import socket
import ssl
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctrl_exec.common.errors import CertificateError
from ctrl_exec.common.tls import Context, TlsSocket, client_context, server_context, wrap
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


def context(*, server_side: bool) -> Context:
    """One that suffices to begin."""
    return Context(ssl.PROTOCOL_TLS_SERVER) if server_side else client_context(None, None, ca=None)


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


def certificates_sent(server: Context, client: Context) -> int:
    """How many certificates a server shows in a handshake that must succeed, by what it writes in clear."""
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
    shown = b""
    with (
        wrap(server, ours, server_side=True, handshake=False) as at_server,
        wrap(client, theirs, handshake=False) as at_client,
    ):
        both = [at_server, at_client]
        while both:
            for each in list(both):
                with contextlib.suppress(ssl.SSLWantReadError):
                    each.do_handshake()
                    both.remove(each)
                if each is at_server:
                    shown += flight(at_client)
    return shown.count(COMMON_NAME)


def flight(sock: TlsSocket) -> bytes:
    """What has arrived below TLS, left there."""
    try:
        return _socket.socket.recv(sock, 65536, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


ROOT = Path(__file__).parents[3]
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


TWO_ENDS = """
import socket, sys
from ctrl_exec.common import tls
certificate, key, ca = sys.argv[1:]
ours, theirs = socket.socketpair()
for each in (ours, theirs):
    each.settimeout(60)
if (child := __import__("os").fork()) == 0:
    theirs.close()
    with tls.wrap(tls.server_context(certificate, key), ours, server_side=True) as server:
        server.sendall(server.recv(100).upper())
    __import__("os")._exit(0)
ours.close()
with tls.wrap(tls.client_context(None, None, ca=ca), theirs) as client:
    client.sendall(b"hello")
    print(client.recv(100), len(client.getpeercert(binary_form=True)) > 100, client.pending(), client.recv(1))
"""

OTHER_SHAPE = """
import ssl, sys, types
class Other(ssl.SSLContext):
    _wrap_socket = None
other = types.ModuleType("_ssl")
other.__dict__.update(sys.modules["_ssl"].__dict__, _SSLContext=Other)
sys.modules["_ssl"] = other
"""


@pytest.mark.parametrize("before", ["", OTHER_SHAPE], ids=["bare", "by ssl"])
def test_both_ends_understand_each_other_also_where_the_c_part_has_another_shape(
    authority: TestCA, before: str
) -> None:
    """With a `_ssl` of another Python `ssl` does it; without that, `ssl` is not even loaded."""
    leaf = authority.issue("host-a")
    program = f"{before}{TWO_ENDS}print(tls.IS_BARE, 'ssl' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program, leaf.crt, leaf.key_path, authority.path],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
    )  # fmt: skip
    assert ended.stderr == ""
    assert ended.stdout == f"b'HELLO' True 0 b''\n{not before} {bool(before)}\n"


def test_a_closed_socket_says_so(pair: tuple[socket.socket, socket.socket]) -> None:
    """What it held of TLS knows the number of a descriptor that is another's soon."""
    wrapped = wrap(context(server_side=False), pair[0], handshake=False)
    wrapped.close()
    with pytest.raises(ValueError, match="closed"):
        wrapped.unwrap()


@pytest.mark.parametrize("timeout_s", [None, 0.0, 7.5])
def test_a_socket_waits_as_long_as_before(
    pair: tuple[socket.socket, socket.socket], timeout_s: float | None
) -> None:
    ours, _ = pair
    ours.settimeout(timeout_s)
    with wrap(context(server_side=False), ours, handshake=False) as wrapped:
        assert wrapped.gettimeout() == timeout_s
        assert os.get_blocking(wrapped.fileno()) == (timeout_s is None)
