"""TLS sockets: whatever happens while one is made, no descriptor stays open."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import warnings
from collections.abc import Iterator

import pytest

from ctrl_exec.common.tls import wrap
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
