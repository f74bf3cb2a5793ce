"""Peers that are gone before anyone looks at who they are."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet
from tests.support.polling import eventually

HOOK = '#!/bin/sh\necho "[$ENVEXEC_SOURCE_IP]" >>"$0.seen"\nexit 0\n'


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """An API that knows a proxy, with a hook that allows all and notes who asked."""
    hook = tmp_path / "hook"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    made = Fleet(
        tmp_path, {"auth_hook": hook, "api_auth_default": None, "api_trusted_proxies": "127.0.0.9/32"}
    )
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("has_proxy", [True, False])
def test_a_request_whose_sender_cannot_be_told_is_not_carried_out(
    fleet: Fleet, tmp_path: Path, has_proxy: bool
) -> None:
    """A reset right after the request leaves nobody to answer, and no address to judge."""
    if not has_proxy:
        fleet.write_conf({"api_trusted_proxies": None})
    api = fleet.start_api()
    os.kill(api.pid, signal.SIGSTOP)
    for _ in range(20):
        gone = socket.create_connection(("127.0.0.1", fleet.api_port))
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        gone.close()
    os.kill(api.pid, signal.SIGCONT)
    assert fleet.http("GET", "/health").status == 200
    seen = tmp_path / "hook.seen"
    eventually(lambda: "[127.0.0.1]" in seen.read_text(), what="the hook was asked")
    assert "[]" not in seen.read_text()
    assert "ACTION=crash" not in api.log()
