"""Load on an HTTP server of ours or another's: the C generator for plain HTTP, `openssl s_time` for TLS."""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.timing import ProbeError

_PATIENCE_S = 20.0
HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: */*\r\n%s\r\n"


@dataclass(frozen=True)
class Load:
    """What came of it."""

    requests: int
    failed: int
    seconds: float
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    last_failure: str = ""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


@dataclass(frozen=True)
class Generator:
    """The compiled generator, and where it may put its request files."""

    program: Path
    directory: Path

    def run(
        self,
        port: int,
        concurrency: int,
        *,
        seconds: float = 2.0,
        most: int = 10**9,
        keep_alive: bool = False,
        request: bytes = b"",
        ip: str = "127.0.0.1",
        allows_failures: bool = False,
    ) -> Load:
        """`GET /health` (or that request) by so many connections at once.

        Raises: ProbeError when a request failed, unless that is allowed.
        """
        connection = b"" if keep_alive else b"Connection: close\r\n"
        path = self.directory / f"request-{port}-{int(keep_alive)}"
        path.write_bytes(request or HEALTH % (port, connection))
        made = subprocess.run(
            [
                str(self.program),
                ip,
                str(port),
                str(concurrency),
                str(seconds),
                str(most),
                str(int(keep_alive)),
                str(path),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 120,
        )
        found = Load(**json.loads(made.stdout))
        if not found.requests and not found.failed and seconds < _PATIENCE_S:
            return self.run(  # the machine is slow: give it the time for one
                port, concurrency, seconds=_PATIENCE_S, most=concurrency, keep_alive=keep_alive,
                request=request, ip=ip, allows_failures=allows_failures,
            )  # fmt: skip
        if not found.requests or (found.failed and not allows_failures):
            raise ProbeError(
                f"port {port}: {found.failed} of {found.failed + found.requests} requests failed: "
                + found.last_failure
            )
        return found


def tls_rate(port: int, concurrency: int, seconds: int) -> float:
    """New TLS connections a second, each with one `GET /health`, by that many `openssl s_time`."""
    argv = [
        "openssl",
        "s_time",
        "-connect",
        f"127.0.0.1:{port}",
        "-www",
        "/health",
        "-new",
        "-time",
        str(seconds),
    ]
    start = time.perf_counter()
    clients = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(concurrency)
    ]
    said = [client.communicate(timeout=seconds + 120)[0] for client in clients]
    took_s = time.perf_counter() - start
    counts = [re.search(r"(\d+) connections in \d+ real seconds", each) for each in said]
    if not all(counts):
        raise ProbeError(f"openssl s_time said: {said[0][-500:]}")
    return sum(int(each[1]) for each in counts if each) / took_s
