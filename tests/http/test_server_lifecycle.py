"""The forking server over its life: TLS, silent crowds, many requests, signals, service manager."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pki import CLIENT, Leaf, TestCA
from tests.support.plain_server import Server, read_all, request
from tests.support.polling import eventually
from tests.support.processes import children_of, environment


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> TestCA:
    return TestCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def leaf(ca: TestCA) -> Leaf:
    return ca.issue("localhost")


@pytest.fixture
def secure(ca: TestCA, leaf: Leaf, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, tls=[str(leaf.crt), str(leaf.key_path), str(ca.path)]) as server:
        yield server


def over_tls(server: Server, ca: TestCA, raw: str, *, client: Leaf | None = None) -> bytes:
    """Ask over TLS; strict about the end: a missing close_notify raises ssl.SSLEOFError."""
    context = ssl.create_default_context(cafile=str(ca.path))
    if client is not None:
        context.load_cert_chain(client.crt, client.key_path)
    plain = server.connect()
    with plain, context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as sock:
        sock.sendall(raw.encode())
        return read_all(sock)


def rss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise ValueError(pid)


def fd_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_tls_is_spoken_to_its_proper_end(secure: Server, ca: TestCA) -> None:
    answer = over_tls(secure, ca, request("/x"))
    seen = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert seen["tls"] is True
    assert seen["has_certificate"] is False


def test_a_client_certificate_reaches_the_application(secure: Server, ca: TestCA) -> None:
    client = ca.issue("client", usages=(CLIENT,))
    answer = over_tls(secure, ca, request("/x"), client=client)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["has_certificate"] is True


def test_a_bare_connect_or_plain_http_on_a_tls_port_harms_nothing(secure: Server, ca: TestCA) -> None:
    secure.connect().close()
    answer = secure.ask(request("/x"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"speaks TLS only" in answer
    secure.wait_for('ACTION=tls-failure IP=127.0.0.1 REASON="not a TLS handshake"')
    assert secure.ask(b"\x16\x03\x01garbage that is no hello at all")[:1] in (b"", b"\x15")
    assert over_tls(secure, ca, request("/x")).startswith(b"HTTP/1.1 200")


def test_a_certificate_of_a_stranger_is_refused_with_its_reason(
    secure: Server, ca: TestCA, tmp_path: Path
) -> None:
    stranger = TestCA(tmp_path / "strange", name="Strange CA").issue("x", usages=(CLIENT,))
    with pytest.raises(OSError):
        over_tls(secure, ca, request("/x"), client=stranger)
    secure.wait_for("ACTION=tls-failure .*certificate refused")


def test_busy_tls_clients_get_503_too(ca: TestCA, leaf: Leaf, tmp_path: Path) -> None:
    with Server(tmp_path, max_children=2, tls=[str(leaf.crt), str(leaf.key_path), None]) as server:
        busy = []
        context = ssl.create_default_context(cafile=str(ca.path))
        for number in range(2):
            sock = context.wrap_socket(server.connect(), server_hostname="localhost")
            sock.sendall(request(f"/wait?file={tmp_path / str(number)}").encode())
            busy.append(sock)
        eventually(lambda: len(list(tmp_path.glob("*.begun"))) == 2)
        assert over_tls(server, ca, request("/x")).startswith(b"HTTP/1.1 503")
        for sock in busy:
            sock.close()
        eventually(lambda: over_tls(server, ca, request("/x")).startswith(b"HTTP/1.1 200"))


def test_silent_clients_cost_no_process_and_nobody_notices_them(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        silent = [server.connect() for _ in range(300)]
        assert server.get("/x")
        assert len(children_of(server.pid)) <= 1
        for sock in silent:
            sock.close()
        eventually(lambda: fd_count(server.pid) < 40)


def test_silent_clients_beyond_the_room_for_them_end_the_oldest(tmp_path: Path) -> None:
    with Server(tmp_path, max_waiting=10) as server:
        silent = [server.connect() for _ in range(15)]
        assert server.get("/x")
        assert read_all(silent[0]) == b""
        silent[-1].sendall(request("/x").encode())
        assert read_all(silent[-1]).startswith(b"HTTP/1.1 200")
        for sock in silent:
            sock.close()


def _is_served(server: Server) -> bool:
    """Whether a newcomer is let in now."""
    with server.connect() as sock:
        sock.sendall(request("/x").encode())
        return read_all(sock).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "words", [b"G", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab"], ids=["head", "body"]
)
def test_half_requests_never_take_all_children(tmp_path: Path, words: bytes) -> None:
    """A newcomer ends the one that waits longest; who is at work is never ended."""
    with Server(tmp_path, max_children=8) as server:
        worker = server.connect()
        worker.sendall(request("/wait").encode())
        half = []
        for _ in range(40):
            sock = server.connect()
            sock.sendall(words)
            half.append(sock)
        # a child just born is not known to wait before it has run for a moment
        eventually(lambda: _is_served(server))
        for _ in range(10):
            assert server.get("/x")
        eventually(lambda: len(children_of(server.pid)) <= 5)
        answer = read_all(half[0])
        assert not answer or answer.startswith(b"HTTP/1.1 503")
        for sock in half:
            sock.close()
        assert children_of(server.pid)
        worker.close()
        server.settle()


def test_half_open_handshakes_never_take_all_children(secure: Server, ca: TestCA) -> None:
    half = []
    for _ in range(200):
        sock = secure.connect()
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # the beginning of a hello
        half.append(sock)
    for _ in range(5):
        assert over_tls(secure, ca, request("/x")).startswith(b"HTTP/1.1 200")
    eventually(lambda: len(children_of(secure.pid)) <= 33)
    for sock in half:
        sock.close()


@pytest.mark.parametrize(
    "count",
    [1_000, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(1200)])],
)
def test_thousands_of_requests_leave_the_parent_as_it_was(tmp_path: Path, count: int) -> None:
    if any(name.startswith("COV") for name in os.environ):
        count = 1000  # under measurement each child writes a file
    with Server(tmp_path) as server:

        def ask_many(each: int) -> None:
            for _ in range(each):
                assert server.ask(request("/x")).startswith(b"HTTP/1.1 200")

        def by_four(total: int) -> None:
            threads = [threading.Thread(target=ask_many, args=(total // 4,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        by_four(400)
        server.settle()
        memory, descriptors = rss_kib(server.pid), fd_count(server.pid)
        by_four(count - 400)
        server.settle()
        assert rss_kib(server.pid) - memory < 1024
        assert fd_count(server.pid) == descriptors


def test_the_servers_starter_may_ignore_or_handle_sigchld(tmp_path: Path) -> None:
    with Server(tmp_path, ignore_sigchld=True) as server:
        assert server.get("/x")["sigchld"] is True
        server.wait_for("ACTION=exit IP=127.0.0.1 STATUS=0")
        server.settle()


def test_a_reload_under_load_drops_nothing(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("one")
    with Server(tmp_path, reload_file=str(text)) as server:
        assert server.get("/reloaded") == {"reloaded": "one"}
        slow = server.connect()
        slow.sendall(request("/sleep?s=1").encode())
        text.write_text("two")
        failures: list[bytes] = []

        def load() -> None:
            for _ in range(150):
                answer = server.ask(request("/x"))
                if not answer.startswith(b"HTTP/1.1 200"):
                    failures.append(answer)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            server.process.send_signal(signal.SIGHUP)
            server.get("/x")
        for thread in threads:
            thread.join()
        assert not failures
        assert server.get("/reloaded") == {"reloaded": "two"}
        assert read_all(slow).startswith(b"HTTP/1.1 200")
        slow.close()
        text.write_text("bad")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for('ACTION=reload ERROR="a bad configuration"')
        assert server.get("/reloaded") == {"reloaded": "two"}


def test_a_reload_takes_a_new_certificate(ca: TestCA, leaf: Leaf, tmp_path: Path) -> None:
    crt, key = tmp_path / "crt", tmp_path / "key"
    crt.write_bytes(leaf.crt.read_bytes())
    key.write_bytes(leaf.key_path.read_bytes())
    with Server(tmp_path, tls=[str(crt), str(key), None]) as server:

        def serial() -> str:
            context = ssl.create_default_context(cafile=str(ca.path))
            with context.wrap_socket(server.connect(), server_hostname="localhost") as sock:
                found = sock.getpeercert()
                assert found
                return str(found["serialNumber"]).lower().lstrip("0")

        assert serial() == leaf.serial
        fresh = ca.issue("localhost")
        key.write_text("no key at all")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("ACTION=reload ERROR=")
        assert serial() == leaf.serial
        crt.write_bytes(fresh.crt.read_bytes())
        key.write_bytes(fresh.key_path.read_bytes())
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: serial() == fresh.serial)


def test_a_reload_ends_idle_connections(tmp_path: Path) -> None:
    with (
        Server(tmp_path, keepalive_requests=0, keepalive_idle_s=60) as server,
        server.connect() as sock,
    ):
        sock.sendall(request("/x").encode())
        assert sock.recv(10) == b"HTTP/1.1 2"
        server.process.send_signal(signal.SIGHUP)
        assert read_all(sock)
        server.settle()


def test_sigterm_lets_those_at_work_finish(tmp_path: Path) -> None:
    with Server(tmp_path, drain_s=20) as server, server.connect() as sock, server.connect() as silent:
        sock.sendall(request("/sleep?s=1").encode())
        eventually(lambda: children_of(server.pid))
        server.process.send_signal(signal.SIGTERM)
        assert read_all(silent) == b""
        with pytest.raises(OSError):
            server.connect()
        assert read_all(sock).startswith(b"HTTP/1.1 200")
        assert server.process.wait(60) == 0
        assert "ACTION=end" in server.log()


def test_at_the_end_of_the_drain_those_at_work_are_told(tmp_path: Path) -> None:
    with Server(tmp_path, drain_s=0.3) as server, server.connect() as sock:
        sock.sendall(request(f"/wait?file={tmp_path / 'word'}").encode())
        eventually((tmp_path / "word.begun").exists)
        server.process.send_signal(signal.SIGTERM)
        assert b'"drained"' in read_all(sock)
        assert server.process.wait(60) == 0


def test_a_second_sigterm_does_not_wait(tmp_path: Path) -> None:
    with Server(tmp_path, drain_s=60, drain_grace_s=0) as server:
        sock = server.connect()
        sock.sendall(request("/sleep?s=30").encode())
        eventually(lambda: children_of(server.pid))
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: not server.is_served())
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        sock.close()


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(60)

        def hear(word: bytes) -> bytes:
            while word not in (seen := manager.recv(1000)):
                pass
            return seen

        with Server(tmp_path, env={"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"}) as server:
            hear(b"READY=1")
            hear(b"WATCHDOG=1")
            hear(b"WATCHDOG=1")
            server.process.send_signal(signal.SIGHUP)
            assert b"MONOTONIC_USEC=" in hear(b"RELOADING=1")
            hear(b"READY=1")
            server.process.send_signal(signal.SIGTERM)
            hear(b"STOPPING=1")
            assert server.process.wait(60) == 0


def test_a_socket_handed_over_by_the_service_manager_is_used(tmp_path: Path) -> None:
    import subprocess
    import sys

    with socket.create_server(("127.0.0.1", 0)) as given:
        port = given.getsockname()[1]
        # a program that puts its own pid into LISTEN_PID and becomes the server, as systemd does it
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); "
            "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'}; "
            "os.execv(sys.executable, [sys.executable, '-m', 'tests.support.plain_server', '{}'])"
        )
        argv = [sys.executable, "-c", script, str(given.fileno())]
        process = subprocess.Popen(
            argv, env=environment(), pass_fds=[given.fileno()], stderr=subprocess.DEVNULL
        )
        try:

            def is_served() -> bool:
                with socket.create_connection(("127.0.0.1", port), 60) as sock:
                    sock.sendall(request("/x").encode())
                    return b'"local_port": %d' % port in read_all(sock)

            eventually(is_served)
        finally:
            process.terminate()
            assert process.wait(60) == 0


def test_the_parent_survives_having_no_descriptors_left(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        before = fd_count(server.pid)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (before + 4, 4096))
        silent = [server.connect() for _ in range(30)]
        assert server.get("/x")
        for sock in silent:
            sock.close()
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (1024, 4096))
        eventually(server.is_served)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be: root has no such limit")
def test_without_room_for_a_process_clients_are_told_and_it_passes(tmp_path: Path) -> None:
    with Server(tmp_path, user=65533) as server:
        assert server.get("/x")
        server.settle()
        server.process.send_signal(signal.SIGUSR2)
        eventually(lambda: b"no room for a process" in server.ask(request("/x")))
        for _ in range(3):
            answer = server.ask(request("/x"))
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"no room for a process" in answer
        server.wait_for('ACTION=overload COUNT=[0-9]+ REASON="cannot fork: ')
        server.process.send_signal(signal.SIGUSR2)
        eventually(server.is_served)


def test_health_stays_quick_among_silent_and_half_open_clients(tmp_path: Path) -> None:
    """A ratio with room for noise: the crowd must not make a request wait for its deadlines."""
    with Server(tmp_path) as server:

        def median_s() -> float:
            times = []
            for _ in range(31):
                started = time.monotonic()
                assert server.get("/x")
                times.append(time.monotonic() - started)
            return sorted(times)[15]

        quiet = median_s()
        crowd = [server.connect() for _ in range(300)]
        for sock in crowd[::3]:
            sock.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab")
        assert median_s() < quiet * 5 + 2
        for sock in crowd:
            sock.close()
