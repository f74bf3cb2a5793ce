"""The forking server over real sockets: answers, limits, deadlines, connections kept and closed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.plain_server import Server, read_all, read_answer, request
from tests.support.polling import eventually
from tests.support.processes import children_of

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("plain")) as server:
        yield server


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def body_of(answer: bytes) -> dict[str, object]:
    made = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert isinstance(made, dict)
    return made


def test_an_answer_has_the_headers_every_answer_has(plain: Server) -> None:
    answer = plain.ask(request("/x?a=b", method="POST", body="hello"))
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert headers["Content-Type"] == "application/json"
    assert int(headers["Content-Length"]) == len(body)
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Date"].endswith(" GMT")
    assert headers["Connection"] == "close"
    seen = json.loads(body)
    assert seen["reqid"] == headers["X-Request-Id"]
    assert (seen["method"], seen["path"], seen["query"], seen["body"]) == (
        "POST",
        "/x",
        [["a", "b"]],
        "hello",
    )
    assert seen["ip"] == "127.0.0.1"
    assert seen["sigchld"]


def test_a_child_keeps_no_descriptor_of_other_connections(plain: Server) -> None:
    alone = plain.get("/x")["fds"]
    others = [plain.connect() for _ in range(20)]
    assert plain.get("/x")["fds"] == alone
    for each in others:
        each.close()


def test_head_gives_the_headers_alone(plain: Server) -> None:
    answer = plain.ask(request("/big?bytes=1000", method="HEAD"))
    assert b"Content-Length: 1000\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_204_has_neither_body_nor_length(plain: Server) -> None:
    answer = plain.ask(request("/empty"))
    assert status_of(answer) == 204
    assert b"\r\nContent-Length" not in answer
    assert b"\r\nContent-Type" not in answer


def test_a_stream_is_chunked_for_1_1_and_ends_with_the_connection_for_1_0(plain: Server) -> None:
    answer = plain.ask(request("/stream"))
    assert (
        answer.partition(b"\r\n\r\n")[2] == b"8\r\npiece 0\n\r\n8\r\npiece 1\n\r\n8\r\npiece 2\n\r\n0\r\n\r\n"
    )
    answer = plain.ask("GET /stream HTTP/1.0\r\n\r\n")
    assert b"Transfer-Encoding" not in answer
    assert answer.endswith(b"\r\n\r\npiece 0\npiece 1\npiece 2\n")


def test_an_error_of_the_application_is_a_500_that_tells_nothing(plain: Server) -> None:
    answer = plain.ask(request("/crash"))
    assert status_of(answer) == 500
    assert b"the reason" not in answer
    plain.wait_for(
        "ACTION=crash ERROR=.*the reason.*REQID=" + answer.split(b"X-Request-Id: ")[1][:16].decode()
    )


def test_a_line_break_cannot_get_into_a_header(plain: Server) -> None:
    assert b"X-Other" not in plain.ask(request("/forged"))


def test_the_application_may_speak_on_the_connection_itself(plain: Server) -> None:
    with plain.connect() as sock:
        sock.sendall(request("/take-over").encode())
        assert sock.recv(100) == b"first\n"
        sock.sendall(b"hello\n")
        assert read_all(sock) == b"you said hello\n"


@pytest.mark.parametrize("path", sorted((HERE / "invalid").glob("*.http")), ids=lambda path: path.stem)
def test_every_invalid_request_gets_its_answer_and_leaves_the_server_well(plain: Server, path: Path) -> None:
    raw = path.read_bytes()
    with plain.connect() as sock:
        sock.sendall(raw)
        answer = read_all(sock)
    assert status_of(answer) == int(path.stem[:3])
    assert body_of(answer)["ok"] is False
    assert body_of(answer)["detail"]


def test_a_cut_request_is_answered_400(plain: Server) -> None:
    with plain.connect() as sock:
        sock.sendall(b"GET /x HTTP/1.1\r\nHost")
        sock.shutdown(socket.SHUT_WR)
        assert status_of(read_all(sock)) == 400


def test_a_too_large_body_is_refused_before_it_is_read_and_the_answer_arrives(plain: Server) -> None:
    with plain.connect() as sock:
        sock.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n")
        sock.sendall(b"x" * 5_000_000)
        assert status_of(read_all(sock)) == 413


def test_expect_continue_is_answered_before_the_body_comes(plain: Server) -> None:
    with plain.connect() as sock:
        sock.sendall(request("/x", "Expect: 100-continue", "Content-Length: 2", method="POST").encode())
        assert sock.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"{}")
        assert body_of(read_all(sock))["body"] == "{}"


def test_a_body_that_came_at_once_needs_no_continue(plain: Server) -> None:
    answer = plain.ask(request("/x", "Expect: 100-continue", method="POST", body="{}"))
    assert status_of(answer) == 200


def test_a_big_answer_reaches_a_reader_that_takes_its_time(plain: Server) -> None:
    with plain.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.sendall(request("/big?bytes=4000000").encode())
        assert len(read_all(sock).partition(b"\r\n\r\n")[2]) == 4_000_000


def test_without_keep_alive_a_pipelined_request_is_dropped_and_the_answer_survives(plain: Server) -> None:
    answer = plain.ask(request("/a") + request("/b"))
    assert answer.count(b"HTTP/1.1") == 1
    assert body_of(answer)["path"] == "/a"


def test_programs_started_by_a_child_end_with_their_own_status(tmp_path: Path) -> None:
    """Also when whoever started the server ignored SIGCHLD."""
    with Server(tmp_path, ignore_sigchld=True) as server:
        assert server.get("/run") == {"codes": [0, 3]}
        server.settle()


def test_kept_connections_serve_many_requests_in_order(tmp_path: Path) -> None:
    with Server(tmp_path, keepalive_requests=4) as server:
        with server.connect() as sock:
            pids = set()
            for number in range(4):
                sock.sendall(request(f"/{number}").encode())
                status, body = read_answer(sock)
                assert status == 200
                assert json.loads(body)["path"] == f"/{number}"
                pids.add(json.loads(body)["pid"])
            assert len(pids) == 1
            assert sock.recv(1) == b""  # the fourth was the last
        answers = server.ask("".join(request(f"/{number}") for number in range(6)))
        assert answers.count(b"HTTP/1.1 200") == 4
        assert [answers.find(b'"/%d"' % number) for number in range(4)] == sorted(
            answers.find(b'"/%d"' % number) for number in range(4)
        )
        assert b'"/4"' not in answers


def test_a_kept_connection_closes_when_asked_to(tmp_path: Path) -> None:
    with Server(tmp_path, keepalive_requests=0, keepalive_idle_s=1) as server:
        for raw in (
            request("/x", "Connection: close"), "GET /x HTTP/1.0\r\n\r\n", request("/close"),
            request("/x"),  # and when idle for too long
        ):  # fmt: skip
            assert b"HTTP/1.1 200" in server.ask(raw)
        bad = server.ask(request("/x") + "BAD\r\n\r\n", timeout_s=60)
        assert status_of(bad) == 400  # garbage after a request spoils that request


def test_a_refusal_in_the_middle_of_a_kept_connection_comes_in_order(tmp_path: Path) -> None:
    with Server(tmp_path, keepalive_requests=0) as server:
        answers = server.ask(request("/x") + "GET / HTTP/1.1\r\nHost : a\r\n\r\n")
        assert [int(each[1:4]) for each in answers.split(b"HTTP/1.1")[1:]] == [200, 400]


def test_kept_connections_do_not_fill_the_server(tmp_path: Path) -> None:
    """Beyond three quarters of the children none is kept; the idle ones make room."""
    with Server(tmp_path, max_children=8, keepalive_requests=0, keepalive_idle_s=60) as server:
        kept = []
        for _ in range(12):
            sock = server.connect()
            sock.sendall(request("/x").encode())
            assert read_answer(sock)[0] == 200
            kept.append(sock)
        assert server.get("/x")
        eventually(lambda: len(children_of(server.pid)) <= 6)
        for sock in kept:
            sock.close()


def test_a_slow_head_and_a_slow_body_are_answered_408(tmp_path: Path) -> None:
    with Server(tmp_path, head_s=0.4, body_s=0.4) as server:
        with server.connect() as sock:
            sock.sendall(b"GET /x HTTP/1.1\r\n")
            assert status_of(read_all(sock)) == 408
        with server.connect() as sock:
            sock.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
            assert status_of(read_all(sock)) == 408
        with server.connect() as sock:
            assert read_all(sock) == b""  # one that never said anything
        server.settle()


def test_a_client_that_drips_is_ended_by_the_deadline_of_the_whole_head(tmp_path: Path) -> None:
    with Server(tmp_path, head_s=0.6) as server, server.connect() as sock:
        drips = iter(b"GET /x HTTP/1.1\r\n" + b"X: y\r\n" * 100)

        def drip() -> bool:
            try:
                sock.send(bytes([next(drips)]))
            except OSError:
                return True
            sock.setblocking(False)
            try:
                return sock.recv(1) in (b"H", b"")
            except BlockingIOError:
                return False
            finally:
                sock.setblocking(True)

        eventually(drip, timeout_s=60)


def test_a_reader_that_takes_nothing_is_ended(tmp_path: Path) -> None:
    with Server(tmp_path, send_s=0.3) as server, server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(request("/stream?count=10000000").encode())
        server.wait_for("ACTION=exit", timeout_s=60)
        server.settle()


def test_more_clients_than_children_get_503_at_once_and_room_comes_back(tmp_path: Path) -> None:
    with Server(tmp_path, max_children=4) as server:
        busy = [server.connect() for _ in range(4)]
        for each in busy:
            each.sendall(request("/wait").encode())
        eventually(lambda: len(children_of(server.pid)) == 4)
        for _ in range(20):
            answer = server.ask(request("/x"))
            assert status_of(answer) == 503
            assert b"Retry-After: 1\r\n" in answer
            assert body_of(answer)["error"] == "service unavailable"
        assert len(children_of(server.pid)) == 4, "they are as busy as before"
        busy.pop().close()
        eventually(server.is_served)
        for each in busy:
            each.close()
        server.wait_for('ACTION=overload COUNT=[0-9]+ REASON="all children are busy"')
        server.settle()


def test_one_address_gets_its_share_only_but_loopback_is_exempt(tmp_path: Path) -> None:
    own = socket.gethostbyname(socket.gethostname())
    if own.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    with Server(tmp_path, addresses=[["0.0.0.0", 0]], max_per_ip=2) as server:
        port = int(server.address.rpartition(":")[2])
        busy = []
        for _ in range(2):
            sock = socket.create_connection((own, port), 60)
            sock.sendall(request("/wait").encode())
            busy.append(sock)
        eventually(lambda: len(children_of(server.pid)) == 2)
        with socket.create_connection((own, port), 60) as sock:
            sock.sendall(request("/x").encode())
            answer = read_all(sock)
        assert status_of(answer) == 503
        assert b"from this address" in answer
        assert server.get("/x")
        for each in busy:
            each.close()


def test_only_so_many_requests_may_be_long(tmp_path: Path) -> None:
    with Server(tmp_path, max_long=2) as server:
        busy = [server.connect() for _ in range(2)]
        for each in busy:
            each.sendall(request("/long?s=30").encode())
        eventually(lambda: server.get("/children")["long"] == 2)
        assert status_of(server.ask(request("/long?s=0"))) == 503
        for pid in children_of(server.pid):
            with contextlib.suppress(ProcessLookupError):  # one that was about to end by itself
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: status_of(server.ask(request("/long?s=0"))) == 200)
        for each in busy:
            each.close()


def test_a_child_that_is_killed_is_reaped_and_hurts_nobody(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        assert server.ask(request("/die")) == b""
        server.wait_for("ACTION=exit IP=127.0.0.1 STATUS=-9")
        assert server.get("/x")
        server.settle()


def test_the_parent_hears_how_a_child_ended(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        server.ask(request("/leave?code=17"))
        server.wait_for("ACTION=exit IP=127.0.0.1 STATUS=17")


def test_counters_outlive_the_children_that_counted(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        for _ in range(10):
            server.get("/x")
        server.settle()
        seen = server.get("/children")
        assert seen["totals"][0] == 11
        assert len(seen["live"]) == 1


def test_a_blocked_address_is_not_served(tmp_path: Path) -> None:
    with Server(tmp_path, blocked=["127.0.0.1"]) as server:
        assert server.ask(request("/x")) == b""
        assert not children_of(server.pid)


def test_a_handler_notices_that_its_client_hung_up(tmp_path: Path) -> None:
    word = tmp_path / "word"
    with Server(tmp_path, keepalive_requests=5) as server:
        with server.connect() as sock:
            # a pipelined request must not look like a hang-up
            sock.sendall((request(f"/wait?file={word}") + request("/x")).encode())
            eventually(lambda: children_of(server.pid))
        eventually(lambda: word.read_text() == "hung-up")


def test_a_client_that_resets_its_connection_hurts_nobody(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        for raw in (b"", b"GET", request("/sleep?s=0.1").encode(), request("/big?bytes=9000000").encode()):
            sock = server.connect()
            sock.sendall(raw)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        assert server.get("/x")
        server.settle()
        assert "ACTION=crash" not in server.log()


def test_it_listens_on_several_addresses_of_both_families(tmp_path: Path) -> None:
    with Server(tmp_path, addresses=[["127.0.0.1", 0], ["::1", 0], ["127.0.0.2", 0]]) as server:
        for address in server.address.split(","):
            host, _, port = address.rpartition(":")
            with socket.create_connection((host.strip("[]"), int(port)), 60) as sock:
                sock.sendall(request("/x").encode())
                seen = body_of(read_all(sock))
                assert seen["local_port"] == int(port)


def test_the_unix_socket_knows_its_user_and_lets_only_its_group_in(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with Server(tmp_path, unix_socket=str(path), unix_group=_own_group()) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(request("/x").encode())
            seen = body_of(read_all(sock))
        assert seen["uid"] == os.getuid()
        assert seen["ip"] == "127.0.0.1"
        # a second server does not take it away, and removes nothing of the first
        with pytest.raises(RuntimeError, match="another server is using it"):
            Server(tmp_path, unix_socket=str(path))
        assert server.stop() == 0
        assert not path.exists()


def test_a_stale_unix_socket_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with Server(tmp_path, unix_socket=str(path)) as server:
        server.kill()
    assert path.exists()
    with Server(tmp_path, unix_socket=str(path)) as server:
        assert server.is_served()
    path.write_text("mine")
    with pytest.raises(RuntimeError, match="no socket is in the way"):
        Server(tmp_path, unix_socket=str(path))
    assert path.read_text() == "mine"


def _own_group() -> str:
    import grp

    return grp.getgrgid(os.getgid()).gr_name


def test_an_address_in_use_is_said_and_the_server_does_not_start(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(RuntimeError, match=f"cannot listen on 127.0.0.1 port {port}"):
            Server(tmp_path, addresses=[["127.0.0.1", port]])


def test_an_unknown_group_is_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="there is no group 'no-such-group'"):
        Server(tmp_path, unix_socket=str(tmp_path / "s"), unix_group="no-such-group")
