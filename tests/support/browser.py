"""A headless Chromium driven over its debugging port: open a page, evaluate, read.

Speaks just enough of the DevTools protocol and of RFC 6455 for one page at a time.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.polling import eventually

CHROMIUM = shutil.which("chromium") or ""
# nothing but the page itself may be fetched, and nothing of the machine is needed
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip
WAIT_S = 60


def document_of(url: str, profile: Path) -> str:
    """The document as it stands when the page has come to rest."""
    argv = [
        CHROMIUM,
        *OPTIONS,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=10000",
        "--dump-dom",
        url,
    ]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


class Page:
    """One page of a browser of its own; a context manager."""

    def __init__(self, url: str, profile: Path) -> None:
        argv = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-port=0", url]
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._numbers = 0
        try:
            port_file = profile / "DevToolsActivePort"
            port = eventually(lambda: port_file.read_text().split()[0] if port_file.exists() else None)
            target = eventually(lambda: self._target(f"http://127.0.0.1:{port}/json", url))
            assert target is not None
            self._socket = self._connect(target)
        except BaseException:
            self._end()
            raise

    @staticmethod
    def _target(listing: str, url: str) -> str | None:
        with contextlib.suppress(OSError), urllib.request.urlopen(listing, timeout=WAIT_S) as answer:
            for each in json.load(answer):
                if each["type"] == "page" and each["url"].startswith(url):
                    return str(each["webSocketDebuggerUrl"])
        return None

    @staticmethod
    def _connect(target: str) -> socket.socket:
        parts = urlsplit(target)
        made = socket.create_connection((parts.hostname or "", parts.port or 0), WAIT_S)
        key = base64.b64encode(os.urandom(16)).decode()
        made.sendall(
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += made.recv(1)
        assert head.startswith(b"HTTP/1.1 101 "), head
        return made

    def evaluate(self, expression: str) -> Any:
        """What the expression is in the page, as JSON can say it."""
        self._numbers += 1
        call = {
            "id": self._numbers, "method": "Runtime.evaluate",
            "params": {"expression": expression, "returnByValue": True},
        }  # fmt: skip
        payload = json.dumps(call).encode()
        # a client's frames are masked; a mask of zeros leaves them as they are
        self._socket.sendall(struct.pack("!BBH4x", 0x81, 0x80 | 126, len(payload)) + payload)
        while True:
            answer = json.loads(self._frame())
            if answer.get("id") == self._numbers:
                assert "exceptionDetails" not in answer["result"], answer
                return answer["result"]["result"].get("value")

    def _frame(self) -> bytes:
        length = self._read(2)[1] & 0x7F
        if length == 126:
            length = struct.unpack("!H", self._read(2))[0]
        elif length == 127:
            length = struct.unpack("!Q", self._read(8))[0]
        return self._read(length)

    def _read(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            piece = self._socket.recv(count - len(found))
            assert piece, "the browser closed the connection"
            found += piece
        return found

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(WAIT_S)
