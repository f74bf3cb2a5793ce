"""The load generator counts whole good answers, and says why others failed."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench.load import Generator
from bench.session import ROOT
from bench.timing import ProbeError

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


class Handler(BaseHTTPRequestHandler):
    """`/health` answers with 200 KiB, other paths with 404."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"x" * 200_000
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    directory = tmp_path_factory.mktemp("load")
    source = str(ROOT / "bench" / "load.c")
    subprocess.run(["cc", "-Wall", "-Werror", "-O1", "-o", str(directory / "load"), source], check=True)
    return Generator(directory / "load", directory)


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("keep_alive", [False, True])
def test_whole_answers_are_counted_however_long(generator: Generator, port: int, keep_alive: bool):
    found = generator.run(port, 4, seconds=60, most=20, keep_alive=keep_alive)
    assert found.requests >= 20
    assert found.failed == 0
    assert 0 < found.p50_us <= found.p99_us <= found.max_us
    assert found.rate > 0


def test_an_answer_that_is_not_200_is_a_failure_with_its_status(generator: Generator, port: int):
    request = b"GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with pytest.raises(ProbeError, match="status 404"):
        generator.run(port, 1, seconds=60, most=3, request=request)


def test_a_port_nobody_listens_on_is_a_failure(generator: Generator):
    with pytest.raises(ProbeError, match="refused"):
        generator.run(1, 1, seconds=60, most=3)


def test_the_other_c_program_compiles_without_a_warning(tmp_path: Path):
    source = str(ROOT / "bench" / "baselines" / "accept_fork.c")
    subprocess.run(["cc", "-Wall", "-Werror", "-O2", "-o", str(tmp_path / "program"), source], check=True)
